// Bytes that a rank sends in a step, by axis of the mesh: exactly what the communicators of a run
// count (CommCounters), found by arithmetic. A step that is skipped for non-finite values publishes
// no weights and so sends less. What experts' ranks send one another depends on what routers
// choose: `expert` is exact if tokens spread evenly over those ranks.
#pragma once

#include <cstdint>

#include "trainer/plan/outline.h"
#include "trainer/plan/plan_job.h"

namespace shoal {

struct AxisTraffic {
  int64_t bytes = 0;
  int64_t calls = 0;  // Collectives and sends

  AxisTraffic& operator+=(const AxisTraffic& other);
  bool operator==(const AxisTraffic&) const = default;
};

struct Traffic {
  AxisTraffic shard_passes;  // Gathers and reductions of every micro-batch
  AxisTraffic shard_end;     // Reductions and gathers once a step
  AxisTraffic replicate;
  AxisTraffic context;  // Keys, values and their gradients, or heads
  AxisTraffic tensor;
  AxisTraffic expert;       // Tokens to their experts and back
  AxisTraffic activations;  // To the next stage of the pipeline
  AxisTraffic gradients;    // To the stage before
  AxisTraffic tied;         // Gradients of weights that several stages hold

  AxisTraffic shard() const;
  int64_t total_bytes() const;
  bool operator==(const Traffic&) const = default;
};

// Of rank `rank` of the pipeline, every step alike.
Traffic TrafficOf(const PlanJob& job, const ModelOutline& model, const PipelineOutline& pipeline,
                  const RankOutline& rank);

}  // namespace shoal
