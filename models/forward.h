// A whole model in one process, with all its weights at hand: inference, and checks.
#pragma once

#include <span>
#include <vector>

#include "models/key_value_cache.h"
#include "models/model.h"

namespace shoal {

// The weights of all blocks: entry b goes with Model::blocks[b]; tied weights share memory.
using ModelWeights = std::vector<std::vector<Parameter>>;

struct ForwardOptions {
  HeadMode head_mode = HeadMode::kLoss;
  double loss_denominator = 1.0;
  KeyValueCache* cache = nullptr;  // BeginPass has been called; EndPass follows here
  // (S) int64: the head sees these rows of the batch's (B T) alone, as (S, 1). Undefined: all. With
  // the logits of a long prompt's last token alone, the (T, V) matrix never exists.
  Tensor only_rows_S = {};
  const TensorParallel* tensor = nullptr;  // What the model was built for, without sequence
                                           // parallelism; null: one rank holds each matrix whole
};

// `batch` and only_rows_S are in host memory; where the weights lie on a device, it is sent a copy.
Activations ForwardAll(const Model& model, std::span<const std::vector<Parameter>> weights,
                       const Batch& batch, const ForwardOptions& options = {});

}  // namespace shoal
