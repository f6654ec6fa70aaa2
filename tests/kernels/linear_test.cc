#include "kernels/linear.h"

#include <gtest/gtest.h>

#include "kernels/matmul.h"
#include "kernels/reference.h"
#include "kernels/threads.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/isa.h"

namespace shoal {
namespace {

struct Case {
  at::ScalarType dtype;
  at::ScalarType grad_dtype;
  LinearLayout layout;
  int64_t rows, in, out;
};

class LinearTest : public testing::TestWithParam<Case> {};

TEST_P(LinearTest, EqualsReference) {
  const Case c = GetParam();
  at::manual_seed(1);
  Tensor x = at::randn({c.rows, c.in}).to(c.dtype).requires_grad_(true);
  Tensor weight_oi = (at::randn({c.out, c.in}) * 0.1).to(c.dtype);
  Parameter weight{c.layout == LinearLayout::kOutIn ? weight_oi : weight_oi.t().contiguous(), {}};
  weight.grad = at::full_like(weight.value, 0.5, c.grad_dtype);
  weight.value.requires_grad_(true);
  Parameter bias{at::randn({c.out}).to(c.dtype).requires_grad_(true),
                 at::ones({c.out}, c.grad_dtype)};
  Tensor y = Linear(x, weight, &bias, c.layout);
  Tensor upstream = at::randn({c.rows, c.out}).to(c.dtype);
  y.backward(upstream);

  // The exact product of the rounded inputs.
  Tensor x64 = x.detach().to(at::kDouble).requires_grad_(true);
  Tensor w64 = weight.value.detach().to(at::kDouble).requires_grad_(true);
  Tensor b64 = bias.value.detach().to(at::kDouble).requires_grad_(true);
  Tensor y64 = reference::Linear(x64, w64, b64, c.layout);
  y64.backward(upstream.to(at::kDouble));
  EXPECT_TRUE(Near(y, y64, c.dtype));
  EXPECT_TRUE(Near(x.grad(), x64.grad(), c.dtype));
  EXPECT_TRUE(
      Near(weight.grad, w64.grad() + 0.5, c.grad_dtype == at::kFloat ? at::kFloat : c.dtype));
  EXPECT_TRUE(Near(bias.grad, b64.grad() + 1, c.grad_dtype == at::kFloat ? at::kFloat : c.dtype));
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (auto [dtype, grad] : {std::pair{at::kDouble, at::kDouble},
                             {at::kFloat, at::kFloat},
                             {at::kHalf, at::kFloat},
                             {at::kBFloat16, at::kFloat},
                             {at::kBFloat16, at::kBFloat16}}) {
    for (LinearLayout layout : {LinearLayout::kOutIn, LinearLayout::kInOut}) {
      for (auto [rows, in, out] :
           {std::array<int64_t, 3>{1, 1, 1}, {3, 17, 5}, {65, 64, 33}, {1, 64, 48}, {0, 4, 4}}) {
        cases.push_back({dtype, grad, layout, rows, in, out});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, LinearTest, testing::ValuesIn(Cases()), [](const auto& info) {
  const Case& c = info.param;
  return absl::StrCat(toString(c.dtype), "_", toString(c.grad_dtype),
                      c.layout == LinearLayout::kOutIn ? "_OutIn_" : "_InOut_", c.rows, "x", c.in,
                      "x", c.out);
});

TEST(LinearTest, FrozenWeightAndInputWithoutGradient) {
  Tensor x = at::randn({4, 8});
  Parameter weight{at::randn({3, 8}), {}};
  EXPECT_FALSE(Linear(x, weight).requires_grad());
  Tensor leaf = x.clone().requires_grad_(true);
  Linear(leaf, weight).sum().backward();
  EXPECT_TRUE(Near(leaf.grad(), weight.value.sum(0, true).expand({4, 8}), at::kFloat));
  Parameter trained{weight.value.clone().requires_grad_(true), at::zeros({3, 8})};
  Linear(x, trained).sum().backward();
  EXPECT_TRUE(Near(trained.grad, x.sum(0, true).expand({3, 8}), at::kFloat));
}

TEST(MatMulTest, ReadsStridedViews) {
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    Tensor wide = at::randn({40, 100}).to(dtype);
    Tensor a = wide.narrow(1, 3, 37), b = at::randn({50, 37}).to(dtype).t(),
           every_other = wide.slice(1, 0, 74, 2);
    Tensor c = at::full({40, 64}, 7.0, dtype).narrow(1, 2, 50);
    MatMul(a, b, c);
    EXPECT_TRUE(Near(c, at::matmul(a.to(at::kDouble), b.to(at::kDouble)), dtype));
    MatMul(every_other, b, c);
    EXPECT_TRUE(Near(c, at::matmul(every_other.to(at::kDouble), b.to(at::kDouble)), dtype));
    Tensor before = c.to(at::kDouble, false, true);
    MatMul(a, b, c, {.accumulate = true, .bias = {}});
    EXPECT_TRUE(Near(c, before + at::matmul(a.to(at::kDouble), b.to(at::kDouble)), dtype));
  }
}

// Decoding rests on this: what a row gives must not depend on its company or the threads.
TEST(MatMulTest, ARowHasTheSameBitsInAnyCompany) {
  at::manual_seed(9);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (auto [depth, outs] : {std::array<int64_t, 2>{64, 48}, {176, 517}, {33, 70}, {1, 5}}) {
        const Tensor a = at::randn({kMaxRowsOfEqualBits, depth}).to(dtype),
                     bias = at::randn({outs}).to(dtype);
        for (const Tensor& b :
             {at::randn({outs, depth}).to(dtype).t(), at::randn({depth, outs}).to(dtype)}) {
          Tensor all = at::empty({a.size(0), outs}, dtype);
          MatMul(a, b, all, {.accumulate = false, .bias = bias});
          EXPECT_TRUE(Near(
              all, at::addmm(bias.to(at::kDouble), a.to(at::kDouble), b.to(at::kDouble)), dtype));
          for (int64_t rows : {1, 2, 3, 5, 7, 8, 11, 29}) {
            SetNumThreads(1 + rows % 2);
            for (int64_t first : {int64_t{0}, a.size(0) - rows}) {
              Tensor some = at::empty({rows, outs}, dtype);
              MatMul(a.narrow(0, first, rows), b, some, {.accumulate = false, .bias = bias});
              EXPECT_TRUE(some.equal(all.narrow(0, first, rows))) << rows << " rows from " << first;
            }
          }
          SetNumThreads(1);
        }
      }
    }
  });
}

TEST(MatMulTest, BfloatProductsMayStayFloat) {
  const Tensor a = at::randn({5, 70}).to(at::kBFloat16), b = at::randn({33, 70}).to(at::kBFloat16);
  const Tensor got = FloatLinear(a, {.value = b, .grad = {}});
  EXPECT_EQ(got.scalar_type(), at::kFloat);
  EXPECT_TRUE(Near(got, at::matmul(a.to(at::kDouble), b.to(at::kDouble).t()), at::kFloat));
}

TEST(MatMulTest, EmptyInnerDimensionGivesBias) {
  Tensor c = at::ones({2, 3});
  MatMul(at::empty({2, 0}), at::empty({0, 3}), c,
         {.accumulate = false, .bias = at::arange(3).to(at::kFloat)});
  EXPECT_TRUE(Near(c, at::arange(3).to(at::kDouble).expand({2, 3}), at::kFloat));
}

TEST(MatMulTest, BothBackendsAgree) {
  Tensor a = at::randn({133, 65}), b = at::randn({65, 20}), onednn = at::empty({133, 20}),
         aten = at::empty({133, 20});
  MatMul(a, b, onednn);
  SetMatMulBackend(at::kFloat, MatMulBackend::kAten);
  MatMul(a, b, aten);
  SetMatMulBackend(at::kFloat, MatMulBackend::kOneDnn);
  EXPECT_TRUE(Near(onednn, aten, at::kFloat));
}

TEST(MatMulTest, MeasuresSomething) {
  EXPECT_GT(MeasureMatMulPeak(at::kFloat, 1), 1e9);
  const MemoryBandwidth bandwidth = MeasureMemoryBandwidth(1);
  EXPECT_GT(bandwidth.read_bytes_per_second, 1e8);
  EXPECT_GT(bandwidth.copy_bytes_per_second, 1e8);
  MeasureMatMulBackend(at::kBFloat16);
}

}  // namespace
}  // namespace shoal
