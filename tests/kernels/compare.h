// Comparison of a kernel's result with an exact one.
#pragma once

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/parameter.h"

namespace shoal {

// Relative to the largest magnitude of `want` and 1: rounding of a result of this dtype, with room
// for the order of its sums.
inline double Tolerance(at::ScalarType dtype) {
  if (dtype == at::kDouble) return 1e-12;
  if (dtype == at::kFloat) return 1e-5;
  if (dtype == at::kHalf) return 1.0 / 1024;  // 2 ulp of float16's 11 bits
  return 1.0 / 128;                           // And of bfloat16's 8
}

// Each entry within tolerance of the exact one; NaN matches NaN, and infinities their equal.
inline testing::AssertionResult Near(const Tensor& got, const Tensor& want, at::ScalarType dtype,
                                     double tolerance_factor = 1) {
  if (got.sizes() != want.sizes()) {
    return testing::AssertionFailure() << "shape: got " << got.sizes() << ", want " << want.sizes();
  }
  const Tensor g = got.detach().to(at::kDouble).contiguous().view({-1});
  const Tensor w = want.detach().to(at::kDouble).contiguous().view({-1});
  const double tolerance = Tolerance(dtype) * tolerance_factor;
  double scale = 1;
  for (int64_t i = 0; i < w.numel(); ++i) {
    const double value = std::abs(w.const_data_ptr<double>()[i]);
    if (std::isfinite(value)) scale = std::max(scale, value);
  }
  for (int64_t i = 0; i < g.numel(); ++i) {
    const double a = g.const_data_ptr<double>()[i], b = w.const_data_ptr<double>()[i];
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    if (!(std::abs(a - b) <= tolerance * scale)) {
      return testing::AssertionFailure()
             << "at " << i << " of shape " << got.sizes() << ": got " << a << ", want " << b
             << ", tolerance " << tolerance * scale;
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace shoal
