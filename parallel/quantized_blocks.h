// Numbers as int8 with a float32 scale for every block of 256 neighbours, to be sent in a quarter
// of float32's bytes (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"; sent so
// by Wang et al. 2023, "ZeRO++").
//
// A block whose largest magnitude is m has the scale s = m / 127, and x becomes s round(x / s): off
// by at most s / 2 = m / 254, but for the rounding of s and of the result's own type. A block that
// holds a number that is not finite comes back as NaN, whole; one whose largest magnitude is below
// 1e-36 as zeros. Every device computes the same bits.
#pragma once

#include <cstdint>

#include "core/parameter.h"

namespace shoal {

inline constexpr int64_t kQuantizedBlock = 256;

// Of (n) numbers: n int8, then the scales.
constexpr int64_t QuantizedBytes(int64_t n) {
  return n + 4 * ((n + kQuantizedBlock - 1) / kQuantizedBlock);
}

// packed (QuantizedBytes(n)) uint8 := values (n), of any floating type.
void Quantize(const Tensor& values, Tensor packed);
// values (n) := the sum of `count` packed tensors that lie end to end, taken in that order in
// float32 (float64 if values is) and rounded once.
void SumQuantized(const Tensor& packed, int count, Tensor values);

}  // namespace shoal
