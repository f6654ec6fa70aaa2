// Lion on a device does what it does on the CPU.
#include "optim/lion.h"

#include <gtest/gtest.h>

#include "tests/kernels/compare.h"
#include "tests/kernels/on_emulated_device.h"

namespace shoal {
namespace {

struct LionState {
  Tensor weights, momentum, copy;
};

LionState AfterSteps(at::ScalarType grad_dtype, at::ScalarType copy_dtype) {
  at::manual_seed(1);
  UpdateOperands operands{.weights = at::randn({1000}),
                          .states = {at::zeros({1000})},
                          .compute_copy = at::empty({1000}, copy_dtype)};
  const Lion lion({.beta1 = 0.9, .beta2 = 0.95, .weight_decay = 0.1});
  for (int64_t step = 1; step <= 3; ++step) {
    operands.gradients = at::randn({1000}).to(grad_dtype);
    lion.Update(operands, {.learning_rate = 0.01, .grad_scale = 0.5, .step = step});
  }
  return {operands.weights, operands.states[0], operands.compute_copy};
}

TEST(LionTest, TheSameOnADevice) {
  for (at::ScalarType grad_dtype : {at::kFloat, at::kBFloat16}) {
    for (at::ScalarType copy_dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const LionState want = AfterSteps(grad_dtype, copy_dtype);
      const OnEmulatedDevice device;
      const LionState got = AfterSteps(grad_dtype, copy_dtype);
      EXPECT_TRUE(Near(got.weights, want.weights, at::kFloat));
      EXPECT_TRUE(Near(got.momentum, want.momentum, at::kFloat));
      EXPECT_TRUE(got.copy.equal(got.weights.to(copy_dtype)));
    }
  }
}

}  // namespace
}  // namespace shoal
