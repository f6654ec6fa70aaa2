// Bytes that a rank holds. Weights, gradients, master weights, optimizer states and buffers of
// gathered units are exact: what ShardedParameters and ShardedOptimizer hold. Activations and what
// the head computes with follow from the shapes of what the blocks' operations keep for their
// backward pass, within 3 % of a run's peak_tensor_bytes in float32 and bfloat16, within 5 % in
// float16; the allocator's slack, libraries and the data loader are not counted.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/plan/outline.h"
#include "trainer/plan/plan_job.h"
#include "trainer/plan/schedule_shape.h"

namespace shoal {

// As ShardedParameters::held_bytes().
HeldBytes HeldBytesOf(const std::vector<UnitSize>& units, const ZeroOptions& zero,
                      const MeshShape& mesh);
// As ShardedOptimizer::state_bytes() or, if they are there, state_bytes_in_host() (those on disk:
// see offload_plan.h); of the shard rank that holds most, if they differ: of weights that are
// updated as wholes and others, each has its own share.
int64_t OptimizerBytesOf(const std::vector<UnitSize>& units, const PlanJob& job);
// Elements that a rank's optimizer updates.
int64_t OwnedNumel(const std::vector<UnitSize>& units, const ZeroOptions& zero,
                   const MeshShape& mesh);

struct PassBytes {
  int64_t activations = 0;  // Of all micro-batches under way, and of the block at work
  int64_t head = 0;         // A chunk's logits, and gradients made in the head's forward pass
  // Offloaded activations: on disk or in host memory at most, and of a step, as often read as
  // written.
  int64_t aside = 0;
  int64_t moved = 0;
};
PassBytes PassBytesOf(const PlanJob& job, const ModelOutline& model, const RankOutline& rank,
                      const ScheduleShape& schedule);

// What layer number `layer` keeps of one micro-batch for its backward pass, its input included.
int64_t LayerBytes(const PlanJob& job, const ModelConfig& config, const PartWidths& widths,
                   int64_t layer);

}  // namespace shoal
