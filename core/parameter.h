// What a model declares of a weight, and what an operation receives of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace shoal {

using Tensor = at::Tensor;

// How a weight starts when no checkpoint brings it.
struct Initializer {
  enum class Kind { kZeros, kOnes, kNormal };
  Kind kind = Kind::kNormal;
  double stddev = 0.02;  // of kNormal, mean 0
};

// One weight as its model declares it; holds no memory.
struct ParameterSpec {
  std::string
      name;  // Unique in the model and in Hugging Face's terms: "model.layers.3.mlp.up_proj.weight"
  std::vector<int64_t> shape;  // As on disk
  Initializer init;
  bool decay = true;      // Weight decay applies (norms, biases and embeddings may opt out)
  bool trainable = true;  // Frozen weights get no gradient and no optimizer state

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t size : shape) n *= size;
    return n;
  }
};

// A weight bound to memory for the duration of a forward or backward pass. Operations read `value`
// and, in their backward pass, ADD the weight's gradient into `grad` instead of returning it to
// autograd: the gradient lands in the flat buffer that ZeRO reduces, without a copy.
struct Parameter {
  Tensor value;  // spec.shape, compute dtype. requires_grad iff `grad` is defined
  Tensor grad;   // spec.shape, gradient dtype (may differ from value's); undefined if frozen or
                 // under no-grad
};

}  // namespace shoal
