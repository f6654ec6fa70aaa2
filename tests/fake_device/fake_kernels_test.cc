// Kernels on the fake device against their plain counterparts in float64 on the host: with the CUDA
// kernels, emulated, and without.
#include <memory>

#include <gtest/gtest.h>

#include "kernels/reference.h"
#include "tests/fake_device/fake_kernels.h"
#include "tests/kernels/gradients.h"

namespace shoal {
namespace {

// On the device where the other operands are.
Tensor With(const Tensor& x, const Tensor& t) { return t.defined() ? t.to(x.device()) : t; }

struct Arithmetic {
  at::ScalarType dtype;
  bool kernels;
};

class FakeKernels : public testing::TestWithParam<Arithmetic> {
 protected:
  void SetUp() override {
    at::manual_seed(5);
    if (GetParam().kernels) kernels_ = std::make_unique<FakeDeviceKernels>();
  }
  void Check(const Operation& fused, const Operation& exact, const Tensors& inputs,
             const Tensors& weights, double tolerance_factor = 4) {
    ExpectMatches(fused, exact, inputs, weights, GetParam().dtype, tolerance_factor, FakeDevice());
  }
  Tensor Placed(const Tensor& x) { return x.to(FakeDevice(), GetParam().dtype); }

 private:
  std::unique_ptr<FakeDeviceKernels> kernels_;
};

INSTANTIATE_TEST_SUITE_P(
    All, FakeKernels,
    testing::Values(Arithmetic{at::kDouble, false}, Arithmetic{at::kFloat, false},
                    Arithmetic{at::kBFloat16, false}, Arithmetic{at::kFloat, true},
                    Arithmetic{at::kBFloat16, true}, Arithmetic{at::kHalf, true}),
    [](const auto& info) {
      return std::string(toString(info.param.dtype)) + (info.param.kernels ? "Emulated" : "Plain");
    });

TEST_P(FakeKernels, Linear) {
  for (const LinearLayout layout : {LinearLayout::kOutIn, LinearLayout::kInOut}) {
    const auto fused = [&](const Tensors& x, const Parameters& w) {
      return Linear(x[0], w[0], &w[1], layout);
    };
    const auto exact = [&](const Tensors& x, const Parameters& w) {
      return reference::Linear(x[0], WeightOf(w[0]), WeightOf(w[1]), layout);
    };
    const int64_t out = 17, in = 12;
    const Tensor weight =
        layout == LinearLayout::kOutIn ? Random({out, in}) * 0.1 : Random({in, out}) * 0.1;
    Check(fused, exact, {Random({2, 9, in})}, {weight, Random({out})});
  }
  const auto fused = [](const Tensors& x, const Parameters& w) { return AddBias(x[0], w[0]); };
  const auto exact = [](const Tensors& x, const Parameters& w) { return x[0] + WeightOf(w[0]); };
  Check(fused, exact, {Random({4, 6})}, {Random({6})});
}

TEST_P(FakeKernels, FloatLinear) {
  const Tensor x = Random({5, 8}), w = Random({3, 8});
  const Tensor got = FloatLinear(Placed(x), {Placed(w), {}}).cpu();
  EXPECT_TRUE(Near(
      got,
      x.to(GetParam().dtype).to(at::kDouble).matmul(w.to(GetParam().dtype).to(at::kDouble).t()),
      GetParam().dtype));
}

TEST_P(FakeKernels, Norms) {
  for (const int64_t columns : {3, 65}) {
    Check([](const Tensors& x, const Parameters& w) { return RmsNorm(x[0], w[0], 1e-5); },
          [](const Tensors& x, const Parameters& w) {
            return reference::RmsNorm(x[0], WeightOf(w[0]), 1e-5);
          },
          {Random({2, 35, columns})}, {Random({columns})});
    Check([](const Tensors& x, const Parameters& w) { return LayerNorm(x[0], w[0], w[1], 1e-5); },
          [](const Tensors& x, const Parameters& w) {
            return reference::LayerNorm(x[0], WeightOf(w[0]), WeightOf(w[1]), 1e-5);
          },
          {Random({2, 35, columns})}, {Random({columns}), Random({columns})});
    Check(
        [](const Tensors& x, const Parameters& w) {
          auto [normed, sum] = AddRmsNorm(x[0], x[1], w[0], 1e-5);
          return at::cat({normed, sum * 2}, -1);
        },
        [](const Tensors& x, const Parameters& w) {
          const Tensor sum = x[0] + x[1];
          return at::cat({reference::RmsNorm(sum, WeightOf(w[0]), 1e-5), sum * 2}, -1);
        },
        {Random({40, columns}), Random({40, columns})}, {Random({columns})});
  }
}

TEST_P(FakeKernels, Activations) {
  for (const GeluKind kind : {GeluKind::kTanh, GeluKind::kErf}) {
    Check([&](const Tensors& x, const Parameters&) { return Gelu(x[0], kind); },
          [&](const Tensors& x, const Parameters&) { return reference::Gelu(x[0], kind); },
          {Random({7, 33})}, {});
  }
  const auto exact = [](const Tensors& x, const Parameters&) {
    return reference::SwiGlu(x[0], x[1]);
  };
  Check([](const Tensors& x, const Parameters&) { return SwiGlu(x[0], x[1]); }, exact,
        {Random({7, 33}), Random({7, 33})}, {});
  Check([](const Tensors& x, const Parameters&) { return SwiGluPacked(x[0]); },
        [](const Tensors& x, const Parameters&) {
          return reference::SwiGlu(x[0].narrow(-1, 0, 9), x[0].narrow(-1, 9, 9));
        },
        {Random({7, 18})}, {});
}

TEST_P(FakeKernels, Rotary) {
  const int64_t half = 6;
  const Tensor frequency = at::pow(10000.0, -at::arange(half, at::kDouble) / half);
  const auto type = GetParam().dtype == at::kDouble ? at::kDouble : at::kFloat;
  const RotaryTable exact_table = MakeRotaryTable(frequency, 40, 1.1, at::kDouble);
  const RotaryTable host_table = MakeRotaryTable(frequency, 40, 1.1, type);
  const RotaryTable table{host_table.cos_PH.to(FakeDevice()), host_table.sin_PH.to(FakeDevice())};
  const Tensor positions = at::randint(40, {2, 5}, at::kLong);
  Check([&](const Tensors& x,
            const Parameters&) { return ApplyRotary(x[0], With(x[0], positions), table); },
        [&](const Tensors& x, const Parameters&) {
          return reference::ApplyRotary(x[0], positions, exact_table);
        },
        {Random({2, 5, 3, 2 * half})}, {});
}

void CheckAttention(const AttentionOptions& options, at::ScalarType dtype) {
  const int64_t T = 37;
  const auto fused = [&](const Tensors& x, const Parameters&) {
    AttentionOptions here = options;
    here.documents_BT = With(x[0], options.documents_BT);
    return CausalAttention(x[0], x[1], x[2], here);
  };
  const auto exact = [&](const Tensors& x, const Parameters&) {
    return reference::CausalAttention(x[0], x[1], x[2], options);
  };
  ExpectMatches(fused, exact, {Random({2, T, 4, 16}), Random({2, T, 2, 16}), Random({2, T, 2, 16})},
                {}, dtype, 4, FakeDevice());
}

TEST_P(FakeKernels, Attention) {
  CheckAttention({}, GetParam().dtype);
  Tensor documents = at::zeros({2, 37}, at::kInt);
  documents[0].narrow(0, 20, 17) += 1;
  documents[1].narrow(0, 1, 36) += 5;
  CheckAttention({.scale = 0.2, .documents_BT = documents}, GetParam().dtype);
  CheckAttention({.documents_BT = documents,
                  .dropout = {.rate = 0.3,
                              .keys_B = at::tensor({int64_t{123456789012345}, int64_t{-77}}),
                              .first_head = 5}},
                 GetParam().dtype);
}

TEST_P(FakeKernels, Dropout) {
  const Tensor keys = at::tensor({5, 5, -9, 7, 1 << 20}, at::kLong);
  const Tensor places = at::tensor({0, 1, 2, 0, 100}, at::kLong);
  const auto exact = [&](const Tensors& x, const Parameters&) {
    return reference::Dropout(x[0], 0.25, keys, places);
  };
  Check([&](const Tensors& x, const Parameters&) { return Dropout(x[0], 0.25, keys, places); },
        exact, {Random({5, 37})}, {});
  Check(
      [&](const Tensors& x, const Parameters&) {
        return Dropout(x[0], 0.25, With(x[0], keys), With(x[0], places));
      },
      exact, {Random({5, 37})}, {});
}

TEST_P(FakeKernels, CrossEntropy) {
  const Tensor targets = at::tensor({3, -100, 0, 16, 5, 5, 2}, at::kLong);
  for (const int64_t chunk_rows : {0, 3}) {
    const CrossEntropyOptions options{
        .denominator = 3.5, .chunk_rows = chunk_rows, .label_smoothing = chunk_rows ? 0.1 : 0};
    Check(
        [&](const Tensors& x, const Parameters& w) {
          return LinearCrossEntropy(x[0], w[0], With(x[0], targets), options);
        },
        [&](const Tensors& x, const Parameters& w) {
          return reference::LinearCrossEntropy(x[0], WeightOf(w[0]), targets, options);
        },
        {Random({7, 12})}, {Random({17, 12})});
    const CrossEntropyOptions plain{.chunk_rows = chunk_rows};
    Check(
        [&](const Tensors& x, const Parameters& w) {
          return LinearLogprobs(x[0], w[0], With(x[0], targets), plain);
        },
        [&](const Tensors& x, const Parameters& w) {
          return reference::LinearLogprobs(x[0], WeightOf(w[0]), targets, plain);
        },
        {Random({7, 12})}, {Random({17, 12})});
  }
}

TEST_P(FakeKernels, OptimizerSteps) {
  const int64_t n = 4099;
  const auto dtype = GetParam().dtype;
  const auto master = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const auto fresh = [&](const Tensor& x) { return x.to(FakeDevice(), master); };
  const Tensor start = Random({n}).to(master).to(at::kDouble);
  Tensor w = fresh(start), m = fresh(at::zeros({n})), v = fresh(at::zeros({n}));
  Tensor sgd_w = fresh(start), momentum = fresh(at::zeros({n}));
  Tensor copy = at::empty({n}, w.options().dtype(dtype)), none;
  Tensor want_w = start.clone(), want_m = at::zeros({n}, at::kDouble), want_v = want_m.clone();
  Tensor want_sgd_w = start.clone(), want_momentum = want_m.clone();
  for (int64_t step = 1; step <= 3; ++step) {
    const Tensor gradient = Random({n}).to(dtype);
    const AdamWOptions adamw{
        .learning_rate = 1e-2, .weight_decay = 0.1, .grad_scale = 0.7, .step = step};
    AdamWStep(w, gradient.to(FakeDevice()), m, v, copy, adamw);
    reference::AdamWStep(want_w, gradient.to(at::kDouble), want_m, want_v, none, adamw);
    const SgdOptions sgd{.learning_rate = 0.1,
                         .momentum = 0.9,
                         .weight_decay = 0.01,
                         .nesterov = true,
                         .grad_scale = 0.5,
                         .step = step};
    Tensor no_copy;
    SgdStep(sgd_w, gradient.to(FakeDevice()), momentum, no_copy, sgd);
    reference::SgdStep(want_sgd_w, gradient.to(at::kDouble), want_momentum, none, sgd);
  }
  EXPECT_TRUE(Near(w.cpu(), want_w, master));
  EXPECT_TRUE(Near(v.cpu(), want_v, master));
  EXPECT_TRUE(Near(sgd_w.cpu(), want_sgd_w, master));
  EXPECT_TRUE(Near(momentum.cpu(), want_momentum, master));
  EXPECT_TRUE(copy.cpu().equal(w.cpu().to(dtype)));

  const double squares = start.to(dtype).to(at::kDouble).square().sum().item<double>();
  EXPECT_NEAR(SumOfSquares(Placed(start)), squares, 1e-9 * squares);
  const Tensor sum = SumOfSquaresOf(Placed(start));
  EXPECT_TRUE(sum.is_privateuseone());
  EXPECT_NEAR(sum.item<double>(), squares, 1e-9 * squares);
}

}  // namespace
}  // namespace shoal
