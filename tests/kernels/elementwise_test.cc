// Normalisation, rotary embedding, activations and embedding against their plain counterparts in
// float64.
#include <gtest/gtest.h>

#include "kernels/embedding.h"
#include "kernels/reference.h"
#include "kernels/rotary.h"
#include "kernels/threads.h"
#include "tests/kernels/isa.h"
#include "tests/kernels/row_operations.h"

namespace shoal {
namespace {

constexpr at::ScalarType kDtypes[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};
constexpr int64_t kColumns[] = {1, 3, 17, 65, 256};

TEST(NormTest, RmsNorm) {
  at::manual_seed(2);
  ForEachIsa([&] {
    for (at::ScalarType dtype : kDtypes) {
      for (int64_t columns : kColumns) {
        ExpectMatches(kRmsNorm.fused, kRmsNorm.exact, {Random({2, 70, columns})},
                      {Random({columns})}, dtype, 4);
        ExpectMatches(kRmsNorm.fused, kRmsNorm.exact, {Strided(Random({3, columns}))},
                      {Random({columns})}, dtype, 4);
      }
    }
  });
  ExpectFiniteDifferences(kRmsNorm.fused, {Random({3, 5})}, {Random({5})});
}

TEST(NormTest, LayerNorm) {
  at::manual_seed(3);
  ForEachIsa([&] {
    for (at::ScalarType dtype : kDtypes) {
      for (int64_t columns : {3, 17, 65, 256}) {
        ExpectMatches(kLayerNorm.fused, kLayerNorm.exact, {Random({2, 70, columns}) + 3},
                      {Random({columns}), Random({columns})}, dtype, 4);
      }
    }
  });
  ExpectFiniteDifferences(kLayerNorm.fused, {Random({3, 5})}, {Random({5}), Random({5})});
}

TEST(NormTest, AddRmsNormGivesTheSumAndPassesItsGradient) {
  at::manual_seed(4);
  ForEachIsa([&] {
    for (at::ScalarType dtype : kDtypes) {
      for (int64_t columns : kColumns) {
        ExpectMatches(kAddRmsNorm.fused, kAddRmsNorm.exact,
                      {Random({66, columns}), Random({66, columns})}, {Random({columns})}, dtype,
                      4);
      }
    }
  });
}

TEST(NormTest, OneResultUnused) {
  Parameter weight{at::ones({8}).requires_grad_(true), at::zeros({8})};
  Tensor x = at::randn({3, 8}).requires_grad_(true),
         residual = at::randn({3, 8}).requires_grad_(true);
  AddRmsNorm(x, residual, weight, 1e-5).second.sum().backward();
  EXPECT_TRUE(Near(x.grad(), at::ones({3, 8}), at::kFloat));
  EXPECT_TRUE(Near(weight.grad, at::zeros({8}), at::kFloat));
  x.mutable_grad().zero_();
  AddRmsNorm(x, residual, weight, 1e-5).first.sum().backward();
  EXPECT_GT(weight.grad.abs().sum().item<float>(), 0);
}

TEST(NormTest, EmptyAndNonFinite) {
  Parameter weight{at::ones({4}), {}};
  EXPECT_EQ(RmsNorm(at::empty({0, 4}), weight, 1e-5).numel(), 0);
  Tensor x = at::ones({2, 4});
  x[0][1] = std::numeric_limits<float>::quiet_NaN();
  ForEachIsa([&] {
    Tensor y = RmsNorm(x, weight, 0);
    EXPECT_TRUE(y[0].isnan().all().item<bool>());
    EXPECT_TRUE(Near(y[1], at::ones({4}), at::kFloat));
    y = RmsNorm(x.to(at::kBFloat16), {at::ones({4}, at::kBFloat16), {}}, 0);
    EXPECT_TRUE(y[0].isnan().all().item<bool>());
  });
}

TEST(NormTest, SameBitsOnAnyNumberOfThreads) {
  Tensor x = at::randn({700, 48}), upstream = at::randn({700, 48});
  Tensor grads[2];
  for (int i = 0; i < 2; ++i) {
    SetNumThreads(i + 1);
    Parameter weight{at::ones({48}).requires_grad_(true), at::zeros({48})};
    RmsNorm(x, weight, 1e-5).backward(upstream);
    grads[i] = weight.grad;
  }
  SetNumThreads(1);
  EXPECT_TRUE(grads[0].equal(grads[1]));
}

TEST(RotaryTest, EqualsReference) {
  at::manual_seed(5);
  for (at::ScalarType dtype : kDtypes) {
    for (int64_t half : {1, 4, 17, 32}) {
      const RotaryTable exact_table =
          MakeRotaryTable(at::rand({half}, at::kDouble), 50, 1.25, at::kDouble);
      const RotaryTable table =
          dtype == at::kDouble
              ? exact_table
              : RotaryTable{exact_table.cos_PH.to(at::kFloat), exact_table.sin_PH.to(at::kFloat)};
      Tensor positions = at::randint(50, {2, 7}, at::kLong);
      const Operation fused = [&](const Tensors& x, const Parameters&) {
        return ApplyRotary(x[0], positions,
                           x[0].scalar_type() == at::kDouble ? exact_table : table);
      };
      const Operation exact = [&](const Tensors& x, const Parameters&) {
        return reference::ApplyRotary(x[0], positions, exact_table);
      };
      ForEachIsa([&] {
        ExpectMatches(fused, exact, {Random({2, 7, 3, 2 * half})}, {}, dtype, 2);
        ExpectMatches(fused, exact, {Strided(Random({2, 7, 3, 2 * half}))}, {}, dtype, 2);
      });
    }
  }
}

TEST(RotaryTest, ReadsHeadsOutOfOneProduct) {
  const RotaryTable table = MakeRotaryTable(at::rand({8}, at::kDouble), 10, 1, at::kFloat);
  Tensor qkv = at::randn({2, 10, 6 * 16}), positions = at::arange(10).expand({2, 10});
  Tensor keys = qkv.view({2, 10, 6, 16}).narrow(2, 4, 2);
  EXPECT_TRUE(Near(ApplyRotary(keys, positions, table),
                   reference::ApplyRotary(keys, positions, table), at::kFloat));
}

TEST(ActivationTest, SwiGlu) {
  at::manual_seed(6);
  ForEachIsa([&] {
    for (at::ScalarType dtype : kDtypes) {
      for (int64_t columns : kColumns) {
        ExpectMatches(kSwiGlu.fused, kSwiGlu.exact,
                      {Random({5, columns}) * 4, Random({5, columns})}, {}, dtype);
        ExpectMatches(kSwiGlu.fused, kSwiGlu.exact,
                      {Strided(Random({5, columns})), Random({5, columns})}, {}, dtype);
        ExpectMatches(kSwiGluPacked.fused, kSwiGluPacked.exact, {Random({5, 2 * columns}) * 4}, {},
                      dtype);
      }
    }
  });
  ExpectFiniteDifferences(kSwiGlu.fused, {Random({2, 3}), Random({2, 3})}, {});
}

TEST(ActivationTest, SwiGluOfExtremes) {
  Tensor gate = at::tensor({-1e4, -100.0, 0.0, 100.0, 1e4}).to(at::kFloat), up = at::ones({5});
  ForEachIsa([&] { EXPECT_TRUE(Near(SwiGlu(gate, up), reference::SwiGlu(gate, up), at::kFloat)); });
}

TEST(ActivationTest, Gelu) {
  at::manual_seed(7);
  for (GeluKind kind : {GeluKind::kTanh, GeluKind::kErf}) {
    const RowOperation gelu = GeluOperation(kind);
    ForEachIsa([&] {
      for (at::ScalarType dtype : kDtypes) {
        for (int64_t columns : kColumns)
          ExpectMatches(gelu.fused, gelu.exact, {Random({5, columns}) * 3}, {}, dtype);
      }
    });
    ExpectFiniteDifferences(gelu.fused, {Random({2, 3})}, {});
  }
}

TEST(ActivationTest, ExpWithinTwoUlp) {
  std::vector<float> x;
  for (float value = -90; value < 90; value += 0.01237f) x.push_back(value);
  std::vector<float> y(x.size());
  ForEachIsa([&] {
    simd::Kernels().exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(static_cast<double>(x[i]));
      if (want < std::numeric_limits<float>::min()) {
        EXPECT_LE(y[i], std::numeric_limits<float>::min());
      } else if (want > std::numeric_limits<float>::max()) {
        EXPECT_TRUE(std::isinf(y[i]));
      } else {
        const float nearest = static_cast<float>(want);
        EXPECT_LE(std::abs(y[i] - want), 2 * (std::nextafter(nearest, INFINITY) - nearest)) << x[i];
      }
    }
  });
}

TEST(EmbeddingTest, GathersAndAddsInOrder) {
  at::manual_seed(8);
  Tensor indices = at::randint(11, {4, 30}, at::kLong);
  const Operation fused = [&](const Tensors&, const Parameters& w) {
    return Embedding(indices, w[0]);
  };
  const Operation exact = [&](const Tensors&, const Parameters& w) {
    return reference::Embedding(indices, WeightOf(w[0]));
  };
  ForEachIsa([&] {
    for (at::ScalarType dtype : kDtypes) {
      for (int64_t columns : kColumns)
        ExpectMatches(fused, exact, {}, {Random({11, columns})}, dtype);
    }
  });
  Parameter frozen{at::randn({11, 4}), {}};
  EXPECT_FALSE(Embedding(indices, frozen).requires_grad());
  EXPECT_EQ(Embedding(at::empty({0, 3}, at::kLong), frozen).numel(), 0);
}

}  // namespace
}  // namespace shoal
