// Sums of client updates in fixed point: int64 addition is associative, so a weighted sum has the
// same bits in any order, on any number of ranks, and under the masks of secure_aggregation.h.
//
//   PlanFixedPoint   before the round: from the range R of an element and the total weight W
//   AddFixedPoint    sums += round(weight * values * 2^f)      one client, in place
//                    (ranks add their sums with an int64 all-reduce)
//   DecodeFixedPoint out = sums * 2^-f / divisor
//
// Headroom: |sum| <= W R 2^f <= 2^62 plus half a unit an addend, so int64 cannot overflow as long
// as every |value| <= R and the weights of all addends together are <= W. The first is checked of
// every element, never clamped; the second is the caller's promise: he knows the cohort before the
// round. The result is off by at most n / 2 units of 2^-f / W from the exact weighted mean of n
// clients. R = 64, W = 2^15 gives f = 41: a step of 4.5e-13 (Bonawitz et al. 2017, section 5, with
// 64 bits).
//
// Element by element, so the bits do not depend on the number of threads. Thread safe on different
// sums.
#pragma once

#include <cstdint>

#include "core/parameter.h"
#include "core/status.h"

namespace shoal {

struct FixedPoint {
  int fraction_bits = 0;    // f: one unit is 2^-f
  double range = 0;         // R: elements above are refused
  double total_weight = 0;  // W: the largest sum of weights that fits

  double step() const;  // 2^-f
};

// The finest format that cannot overflow: f = 62 - ceil(log2(R W)). InvalidArgument: R or W not
// positive and finite, or a step coarser than 2^-24 R (the numbers of float32), which happens where
// W > 2^38.
absl::StatusOr<FixedPoint> PlanFixedPoint(double range, double total_weight);

// sums[i] += round(weight * values[i] * 2^f), to nearest even. values: float32 or float64,
// sums: int64, of one size, both contiguous. weight >= 0, at most W. OutOfRange names the first
// element that is not finite or above R in magnitude; then sums are as they were.
absl::Status AddFixedPoint(const Tensor& values, double weight, const FixedPoint& format,
                           Tensor& sums);

// out[i] = sums[i] * 2^-f / divisor, computed in float64. out: float32 or float64 of the size of
// sums, both contiguous. divisor > 0 (FedAvg: the sum of weights; under differential privacy the
// expected one).
void DecodeFixedPoint(const Tensor& sums, const FixedPoint& format, double divisor, Tensor& out);

}  // namespace shoal
