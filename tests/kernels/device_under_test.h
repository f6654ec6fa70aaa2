// Tests of kernels/cuda run twice from one source: in the emulator (emulated_device.cc), and in
// build/cuda on a GPU (tests/gpu/gpu_under_test.cc).
#pragma once

#include <optional>

#include <gtest/gtest.h>

#include "kernels/device_kernels.h"
#include "tests/kernels/gradients.h"

namespace shoal {

// Null where this machine has none.
std::optional<c10::Device> DeviceUnderTest();

using Tensors = std::vector<Tensor>;
using Parameters = std::vector<Parameter>;

inline constexpr at::ScalarType kDeviceDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

inline Tensor Random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

// A view whose rows lie apart.
inline Tensor Strided(const Tensor& x) { return at::cat({x, x}, -1).narrow(-1, 0, x.size(-1)); }

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!DeviceUnderTest()) GTEST_SKIP() << "this machine has no GPU";
    at::manual_seed(1);
  }

  Tensor Placed(const Tensor& x) { return x.defined() ? x.to(*DeviceUnderTest()) : x; }

  // `fused` on the device against `exact` in float64.
  void Check(const Operation& fused, const Operation& exact, const Tensors& inputs,
             const Tensors& weights, at::ScalarType dtype, double tolerance_factor = 1) {
    ExpectMatches(fused, exact, inputs, weights, dtype, tolerance_factor, *DeviceUnderTest());
  }
};

}  // namespace shoal
