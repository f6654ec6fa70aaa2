// The global norm of the gradients, and clipping by it (Pascanu et al. 2013).
#pragma once

#include <vector>

#include "parallel/comm/communicator.h"
#include "parallel/sharded_unit.h"

namespace shoal {

// L2 norm over all trainable weights of all ranks, in float64; the same bits on every rank and at
// every ZeRO stage: squares are added shard by shard, and shards in rank order. Inf or NaN if any
// gradient is. Tied weights count once, padding is zero. Collective over `shard`, the ranks that
// share these weights by ZeRO, and then over `model`, the ranks that hold other weights of the
// model (tensor and pipeline parallelism). shares_experts: of all ranks alike, those of `shard`
// hold different experts.
double GlobalGradNorm(const std::vector<OptimizerSlice>& slices, Communicator& shard,
                      Communicator& model, bool shares_experts = false);

// The factor that brings a gradient of norm `norm` down to `max_norm`: max_norm / (norm + 1e-6), at
// most 1, as torch.nn.utils.clip_grad_norm_ has it. max_norm 0: never clips.
double ClipScale(double norm, double max_norm);

}  // namespace shoal
