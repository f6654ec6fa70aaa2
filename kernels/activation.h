// Element-wise non-linearities, fused with their gate, differentiable.
#pragma once

#include "core/parameter.h"

namespace shoal {

// silu(gate) * up (Shazeer 2020). Same shapes. The backward pass recomputes silu from gate.
Tensor SwiGlu(const Tensor& gate, const Tensor& up);

enum class GeluKind { kTanh, kErf };  // Hugging Face's "gelu_new"/"gelu_pytorch_tanh", and "gelu"
Tensor Gelu(const Tensor& x, GeluKind kind);

}  // namespace shoal
