// Float32 master weights beside their bfloat16 rounding on a device: what SplitMaster holds where
// the host cannot look at numbers without waiting for them, and so keeps no list.
//
//   bits(master) = (bits(rounded) << 16) + low - (sign << 16), low of 16 bits, sign of one
//
// Rounding to nearest moves a number by half a step at most, down from halfway too, which 17 bits
// hold: every number comes back with its bits. A NaN comes back as a NaN: with its bits if they are
// near enough to those it was rounded to, else as what it was rounded to. So does a denormal from a
// device that rounds it to zero (GPUs do not).
#pragma once

#include <cstdint>

#include "core/parameter.h"

namespace shoal {

struct SplitBits {
  Tensor low;    // (n) int16
  Tensor signs;  // (n / 32, rounded up) int32, element i's in bit i % 32 of word i / 32

  // Of n zeros.
  static SplitBits Zeros(int64_t n, c10::Device device);
  // As SplitMaster's.
  void Join(int64_t begin, const Tensor& rounded, const Tensor& masters) const;
  void Split(int64_t begin, const Tensor& masters, const Tensor& rounded) const;
};

}  // namespace shoal
