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

inline constexpr at::ScalarType kDeviceDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

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
