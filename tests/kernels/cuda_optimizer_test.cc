// Update rules and sums of kernels/cuda.
#include <gtest/gtest.h>

#include "kernels/optimizer_step.h"
#include "kernels/reference.h"
#include "tests/kernels/device_under_test.h"

namespace shoal {
namespace {

using CudaAdamWTest = DeviceTest;
using CudaSgdTest = DeviceTest;
using CudaLionTest = DeviceTest;
using CudaSumOfSquaresTest = DeviceTest;

TEST_F(CudaAdamWTest, EqualsReferenceOverSteps) {
  for (at::ScalarType grad_dtype : kDeviceDtypes) {
    for (at::ScalarType copy_dtype : kDeviceDtypes) {
      for (int64_t n : {1, 257, 4099}) {
        Tensor w = Placed(at::randn({n})), m = at::zeros_like(w), v = at::zeros_like(w),
               copy = at::empty_like(w, copy_dtype);
        Tensor w64 = w.cpu().to(at::kDouble), m64 = at::zeros_like(w64), v64 = at::zeros_like(w64),
               none;
        for (int64_t step = 1; step <= 3; ++step) {
          const Tensor grads = at::randn({n}).to(grad_dtype);
          const AdamWOptions options{
              .learning_rate = 1e-2, .weight_decay = 0.1, .grad_scale = 0.7, .step = step};
          AdamWStep(w, Placed(grads), m, v, copy, options);
          reference::AdamWStep(w64, grads.to(at::kDouble), m64, v64, none, options);
        }
        EXPECT_TRUE(Near(w.cpu(), w64, at::kFloat));
        EXPECT_TRUE(Near(m.cpu(), m64, at::kFloat));
        EXPECT_TRUE(Near(v.cpu(), v64, at::kFloat));
        EXPECT_TRUE(copy.equal(w.to(copy_dtype)));
      }
    }
  }
}

TEST_F(CudaSgdTest, EqualsReferenceOverSteps) {
  for (bool nesterov : {false, true}) {
    for (double momentum : {0.0, 0.9}) {
      if (nesterov && momentum == 0) continue;
      Tensor w = Placed(at::randn({300})), copy = at::empty_like(w, at::kBFloat16), none;
      // The first step does not read it
      Tensor buffer = momentum != 0 ? at::full_like(w, NAN) : Tensor();
      Tensor w64 = w.cpu().to(at::kDouble),
             buffer64 = momentum != 0 ? at::zeros({300}, at::kDouble) : Tensor();
      for (int64_t step = 1; step <= 3; ++step) {
        const Tensor grads = at::randn({300});
        const SgdOptions options{.learning_rate = 0.1,
                                 .momentum = momentum,
                                 .weight_decay = 0.01,
                                 .nesterov = nesterov,
                                 .grad_scale = 0.5,
                                 .step = step};
        SgdStep(w, Placed(grads), buffer, copy, options);
        reference::SgdStep(w64, grads.to(at::kDouble), buffer64, none, options);
      }
      EXPECT_TRUE(Near(w.cpu(), w64, at::kFloat));
      EXPECT_TRUE(copy.equal(w.to(at::kBFloat16)));
    }
  }
}

TEST_F(CudaLionTest, ByPlainOperators) {
  for (at::ScalarType grad_dtype : kDeviceDtypes) {
    const Tensor w = Placed(at::randn({1000})), m = Placed(at::randn({1000})),
                 copy = at::empty_like(w, at::kHalf);
    const Tensor grads = Placed(at::randn({1000}).to(grad_dtype));
    const Tensor g = grads.cpu().to(at::kDouble) * 0.5, m64 = m.cpu().to(at::kDouble);
    const Tensor want = w.cpu().to(at::kDouble) * 0.99 - 0.1 * (m64 * 0.9 + g * 0.1).sign();
    DeviceKernelsFor(grads)->lion(
        CallOn(grads),
        {.n = 1000,
         .weights = w.mutable_data_ptr<float>(),
         .gradients = grads.const_data_ptr(),
         .moment1 = m.mutable_data_ptr<float>(),
         .moment2 = nullptr,
         .copy = copy.mutable_data_ptr(),
         .copy_type = ElementType::kFloat16},
        {.keep = 0.99f, .learning_rate = 0.1f, .beta1 = 0.9f, .beta2 = 0.95f, .grad_scale = 0.5f});
    EXPECT_TRUE(Near(w.cpu(), want, at::kFloat));
    EXPECT_TRUE(Near(m.cpu(), m64 * 0.95 + g * 0.05, at::kFloat));
    EXPECT_TRUE(copy.equal(w.to(at::kHalf)));
  }
}

TEST_F(CudaSumOfSquaresTest, ManyBlocksAndNone) {
  for (int64_t n : {0, 1, 4096, 4097, 100001}) {
    const Tensor values = at::randn({n});
    const double want = values.to(at::kDouble).square().sum().item<double>();
    const Tensor got = SumOfSquaresOf(Placed(values));
    EXPECT_EQ(got.device(), *DeviceUnderTest());
    EXPECT_EQ(got.scalar_type(), at::kDouble);
    EXPECT_EQ(got.dim(), 0);
    EXPECT_NEAR(got.item<double>(), want, 1e-12 * want) << n;
    EXPECT_NEAR(SumOfSquaresOf(Placed(values.to(at::kBFloat16))).item<double>(), want,
                2e-2 * want + 1e-2);
  }
  Tensor values = at::ones({5000});
  values[4999] = INFINITY;
  EXPECT_TRUE(std::isinf(SumOfSquaresOf(Placed(values)).item<double>()));
}

TEST_F(CudaSumOfSquaresTest, BlocksOfBlocks) {
  // More than 4096 blocks: a third launch.
  const int64_t n = kDeviceSumBlock * kDeviceSumBlock + 5;
  EXPECT_EQ(SumOfSquaresOf(Placed(at::ones({n}, at::kBFloat16))).item<double>(),
            static_cast<double>(n));
}

}  // namespace
}  // namespace shoal
