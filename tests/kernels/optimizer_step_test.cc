#include "kernels/optimizer_step.h"

#include <gtest/gtest.h>

#include "kernels/reference.h"
#include "kernels/threads.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/isa.h"

namespace shoal {
namespace {

TEST(AdamWStepTest, ByHand) {
  // g = 1, m = 0, v = 0, t = 1: m' = 0.1, v' = 0.001, both corrected to 1: w' = w (1 - lr wd) - lr
  // / (1 + eps).
  for (at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    Tensor w = at::full({3}, 2.0, dtype), g = at::full({3}, 4.0, dtype), m = at::zeros({3}, dtype),
           v = at::zeros({3}, dtype), none;
    AdamWStep(w, g, m, v, none,
              {.learning_rate = 0.1, .weight_decay = 0.5, .grad_scale = 0.25, .step = 1});
    EXPECT_TRUE(Near(w, at::full({3}, 2.0 * 0.95 - 0.1 / (1 + 1e-8), at::kDouble), dtype));
    EXPECT_TRUE(Near(m, at::full({3}, 0.1, at::kDouble), dtype));
    EXPECT_TRUE(Near(v, at::full({3}, 0.001, at::kDouble), dtype));
  }
}

TEST(AdamWStepTest, EqualsReferenceOverSteps) {
  at::manual_seed(1);
  ForEachIsa([&] {
    for (at::ScalarType grad_dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (at::ScalarType copy_dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
        for (int64_t n : {1, 17, 4099}) {
          Tensor w = at::randn({n}), m = at::zeros({n}), v = at::zeros({n}),
                 copy = at::empty({n}, copy_dtype);
          Tensor w64 = w.to(at::kDouble), m64 = m.to(at::kDouble), v64 = v.to(at::kDouble), none;
          for (int64_t step = 1; step <= 3; ++step) {
            Tensor grads = at::randn({n}).to(grad_dtype);
            const AdamWOptions options{
                .learning_rate = 1e-2, .weight_decay = 0.1, .grad_scale = 0.7, .step = step};
            AdamWStep(w, grads, m, v, copy, options);
            reference::AdamWStep(w64, grads.to(at::kDouble), m64, v64, none, options);
          }
          EXPECT_TRUE(Near(w, w64, at::kFloat));
          EXPECT_TRUE(Near(m, m64, at::kFloat));
          EXPECT_TRUE(Near(v, v64, at::kFloat));
          EXPECT_TRUE(copy.equal(w.to(copy_dtype)));
        }
      }
    }
  });
}

TEST(SgdStepTest, EqualsReferenceOverSteps) {
  at::manual_seed(2);
  ForEachIsa([&] {
    for (bool nesterov : {false, true}) {
      for (double momentum : {0.0, 0.9}) {
        if (nesterov && momentum == 0) continue;
        Tensor w = at::randn({37}), copy = at::empty({37}, at::kBFloat16), none;
        Tensor buffer =
            momentum != 0 ? at::full({37}, NAN) : Tensor();  // The first step does not read it
        Tensor w64 = w.to(at::kDouble),
               buffer64 = momentum != 0 ? at::zeros({37}, at::kDouble) : Tensor();
        for (int64_t step = 1; step <= 3; ++step) {
          Tensor grads = at::randn({37});
          const SgdOptions options{.learning_rate = 0.1,
                                   .momentum = momentum,
                                   .weight_decay = 0.01,
                                   .nesterov = nesterov,
                                   .grad_scale = 0.5,
                                   .step = step};
          SgdStep(w, grads, buffer, copy, options);
          reference::SgdStep(w64, grads.to(at::kDouble), buffer64, none, options);
        }
        EXPECT_TRUE(Near(w, w64, at::kFloat));
        EXPECT_TRUE(copy.equal(w.to(at::kBFloat16)));
      }
    }
  });
}

TEST(SumOfSquaresTest, SameBitsEverywhere) {
  at::manual_seed(3);
  Tensor values = at::randn({100001});
  const double want = values.to(at::kDouble).square().sum().item<double>();
  std::vector<double> got;
  ForEachIsa([&] {
    for (int threads : {1, 2}) {
      SetNumThreads(threads);
      got.push_back(SumOfSquares(values));
    }
  });
  SetNumThreads(1);
  for (double sum : got) EXPECT_EQ(sum, got[0]);
  EXPECT_NEAR(got[0], want, 1e-9 * want);
  EXPECT_NEAR(SumOfSquares(values.to(at::kBFloat16)), want, 1e-2 * want);
  EXPECT_NEAR(SumOfSquares(values.to(at::kDouble)), want, 1e-9 * want);
  EXPECT_EQ(SumOfSquares(at::empty({0})), 0);
}

TEST(SumOfSquaresTest, NonFinitePropagates) {
  Tensor values = at::ones({5000});
  values[4999] = INFINITY;
  ForEachIsa([&] { EXPECT_TRUE(std::isinf(SumOfSquares(values))); });
  values[3] = NAN;
  ForEachIsa([&] { EXPECT_TRUE(std::isnan(SumOfSquares(values))); });
}

}  // namespace
}  // namespace shoal
