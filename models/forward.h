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
  KeyValueCache* cache = nullptr;  // Advanced by the batch's T
  // (B) int64: the head sees this place of each row alone, T = 1. Undefined: all places. With the
  // logits of a long prompt's last token alone, the (T, V) matrix never exists.
  Tensor only_place_B = {};
};

Activations ForwardAll(const Model& model, std::span<const std::vector<Parameter>> weights,
                       const Batch& batch, const ForwardOptions& options = {});

}  // namespace shoal
