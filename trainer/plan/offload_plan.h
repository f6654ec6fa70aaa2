// What a rank offloads (core/offload.h): bytes on disk, moved, and in memory on their way.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "trainer/plan/outline.h"
#include "trainer/plan/plan_job.h"

namespace shoal {

struct OffloadPlan {
  // Exact, in whole pages. The optimizer's states are of the shard rank that has most.
  int64_t weights = 0;
  int64_t master_weights = 0;
  int64_t optimizer = 0;
  // In memory at most: weights that are read for the next unit, in the passes; of the update what
  // two units have that follow each other (two rounds, of rules that update several units at once).
  int64_t passes_buffer = 0;
  int64_t update_buffer = 0;
  // A step's but the first, activations left out.
  int64_t read = 0;
  int64_t written = 0;

  int64_t held_bytes() const { return weights + master_weights + optimizer; }
};

// Without activations, which PassBytesOf knows.
OffloadPlan OffloadPlanOf(const RankOutline& rank, const PlanJob& job);

// Shards of a unit group that hold unequal parts of optimizer states: 1, if all are alike.
int DifferentShards(const std::vector<UnitSize>& units, const PlanJob& job);

// Calls visit(bytes) for every tensor of states that the shard-th rank keeps of a unit, the running
// mean among them.
void ForStateTensors(const UnitSize& unit, const PlanJob& job, int shard,
                     const std::function<void(int64_t bytes)>& visit);

}  // namespace shoal
