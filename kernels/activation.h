// Element-wise non-linearities, fused with their gate, differentiable.
#pragma once

#include "core/parameter.h"

namespace shoal {

// silu(gate) * up (Shazeer 2020). Same shapes. The backward pass recomputes silu from gate.
// Columns of a wider matrix (halves of one product) are read where they lie.
Tensor SwiGlu(const Tensor& gate, const Tensor& up);

// The same for the two halves of one product: gate_up is (..., 2F), gate the first F columns.
// Returns
// (..., F); backward writes both halves of one (..., 2F) buffer.
Tensor SwiGluPacked(const Tensor& gate_up);

enum class GeluKind { kTanh, kErf };  // Hugging Face's "gelu_new"/"gelu_pytorch_tanh", and "gelu"
Tensor Gelu(const Tensor& x, GeluKind kind);

}  // namespace shoal
