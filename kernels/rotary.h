// Rotary position embedding (Su et al. 2021), half-rotation layout (Llama's rotate_half).
#pragma once

#include "core/parameter.h"

namespace shoal {

struct RotaryTable {
  Tensor cos_PH;  // (positions, head_dim / 2) float32 (float64 in float64 models)
  Tensor sin_PH;
};

// inverse_frequency: (head_dim / 2) float64; angles are position * inverse_frequency, cos and sin
// are multiplied by `attention_factor`. Covers positions [0, num_positions).
RotaryTable MakeRotaryTable(const Tensor& inverse_frequency, int64_t num_positions,
                            double attention_factor, at::ScalarType dtype);

// x: (B, T, N, H), positions_BT: int64; both and the table on one device. Returns the rotated x;
// differentiable in x. A position outside the table is a broken invariant; found on another device
// than the CPU, it makes its token NaN.
Tensor ApplyRotary(const Tensor& x_BTNH, const Tensor& positions_BT, const RotaryTable& table);

}  // namespace shoal
