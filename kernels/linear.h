// Matrix products of linear layers, through oneDNN in float32 and bfloat16.
#pragma once

#include "core/parameter.h"

namespace shoal {

// How a weight lies on disk and in memory.
enum class LinearLayout {
  kOutIn,  // (out, in): torch.nn.Linear
  kInOut,  // (in, out): GPT-2's Conv1D
};

// y = x W^T + b. x: (..., in); returns (..., out) in x's dtype. bias: (out) or nullptr.
// Backward: returns dL/dx; adds dL/dW to weight.grad and dL/db to bias->grad where these are
// defined, with the product's own accumulation (beta = 1), in the gradient buffer's dtype.
Tensor Linear(const Tensor& x, const Parameter& weight, const Parameter* bias = nullptr,
              LinearLayout layout = LinearLayout::kOutIn);

// x W^T in float32 (float64 if x is), W (out, in): products of bfloat16 that are not rounded again.
// No gradient.
Tensor FloatLinear(const Tensor& x, const Parameter& weight);

// x + b, over x's last dimension. Backward adds dL/db to bias.grad where that is defined.
Tensor AddBias(const Tensor& x, const Parameter& bias);

}  // namespace shoal
