// What a plan is made for: all that decides the bytes and messages of a training job, beside its
// model. Read off a recipe by JobOf (recipe_plan.h), or set by hand.
#pragma once

#include <cstdint>
#include <memory>

#include "optim/whole_rule.h"
#include "parallel/context_parallel.h"
#include "parallel/device_mesh.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/sharded_unit.h"
#include "trainer/block_runner.h"

namespace shoal {

struct PlanJob {
  MeshShape mesh;
  ZeroOptions zero;
  bool sequence_parallel = true;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int chunks = 1;
  Recompute recompute = Recompute::kNone;
  double label_smoothing = 0;
  int64_t sequences = 1;  // Of a micro-batch and rank
  int64_t seq_length = 1;
  // With mesh.context above 1, which divides seq_length.
  ContextParallel::Method context_method = ContextParallel::Method::kRing;
  int optimizer_states = 2;  // Numbers a weight that is updated element by element
  std::shared_ptr<const WholeRule> whole_rule = nullptr;  // Of the others; null: there are none
  bool ema = false;  // A running mean of the weights beside them
  OffloadTo offload_activations = OffloadTo::kNowhere;

  int micro_batches() const { return zero.micro_batches; }
  // Where ranks compute; which GPU it is changes nothing.
  at::DeviceType device_type() const { return zero.on_device ? at::kCUDA : at::kCPU; }
  // Tokens of a micro-batch and rank.
  int64_t rows() const { return sequences * (seq_length / mesh.context); }
  bool shares_rows() const { return sequence_parallel && mesh.tensor > 1; }
  // Rows of the residual stream that a tensor-parallel rank has between blocks.
  int64_t own_rows() const { return shares_rows() ? rows() / mesh.tensor : rows(); }
  // The schedule makes backward passes in halves, and so reduces once a step.
  bool splits_backward() const {
    return schedule == ScheduleKind::kZbH1 || schedule == ScheduleKind::kZbV;
  }
  int64_t tokens_per_step() const {
    return rows() * micro_batches() * mesh.replicate * mesh.weight_shards();
  }
};

}  // namespace shoal
