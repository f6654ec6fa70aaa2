// Operations that a device gets from ATen, all of them or around a kernel of its own: as exact
// there as on the host.
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/record_function.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/dtype.h"
#include "kernels/accumulate.h"
#include "kernels/cross_entropy.h"
#include "kernels/device_kernels.h"
#include "kernels/embedding.h"
#include "kernels/experts.h"
#include "kernels/linear.h"
#include "kernels/matmul.h"
#include "kernels/reference.h"
#include "kernels/take_rows.h"
#include "tests/fake_device/fake_device.h"
#include "tests/kernels/emulated_kernels.h"
#include "tests/kernels/gradients.h"

namespace shoal {
namespace {

constexpr at::ScalarType kDtypes[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};

// Of the host: the device draws nothing.
void Seed(uint64_t seed) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  generator.set_current_seed(seed);
}

Tensor OnDevice(const Tensor& x) { return x.to(FakeDevice()); }

// `operation` on the device in `dtype` against `exact` on the host in float64.
void ExpectMatchesOnDevice(const Operation& operation, const Operation& exact,
                           const Tensors& inputs, const Tensors& weights, at::ScalarType dtype,
                           double tolerance_factor = 1) {
  const size_t before = FakeOperatorCalls();
  ExpectMatches(operation, exact, inputs, weights, dtype, tolerance_factor, FakeDevice());
  EXPECT_GT(FakeOperatorCalls(), before);
}

TEST(AtenKernels, MatMulOfViewsIntoViews) {
  Seed(1);
  for (at::ScalarType dtype : kDtypes) {
    for (at::ScalarType out : {dtype, at::kFloat}) {
      if (dtype == at::kDouble && out == at::kFloat) continue;
      const Tensor a = at::randn({5, 30}).to(dtype).narrow(1, 3, 17),
                   b = at::randn({9, 17}).to(dtype), bias = at::randn({9}).to(dtype),
                   exact = at::mm(a.to(at::kDouble), b.to(at::kDouble).t());
      const Tensor wide = OnDevice(at::full({5, 20}, 2.0, out));
      Tensor c = wide.narrow(1, 4, 9), transposed = OnDevice(at::full({9, 5}, 2.0, out)).t();
      for (Tensor* result : {&c, &transposed}) {
        MatMul(OnDevice(a), OnDevice(b).t(), *result, {.accumulate = true, .bias = {}});
        EXPECT_TRUE(Near(result->cpu(), exact + 2, out));
        MatMul(OnDevice(a), OnDevice(b).t(), *result);
        EXPECT_TRUE(Near(result->cpu(), exact, out));
        MatMul(OnDevice(a), OnDevice(b).t(), *result,
               {.accumulate = false, .bias = OnDevice(bias)});
        EXPECT_TRUE(Near(result->cpu(), exact + bias.to(at::kDouble), out));
      }
      EXPECT_TRUE(wide.narrow(1, 0, 4).cpu().equal(at::full({5, 4}, 2.0, out)));
    }
  }
  Tensor nothing = OnDevice(at::ones({2, 3}));
  MatMul(OnDevice(at::ones({2, 0})), OnDevice(at::ones({0, 3})), nothing);
  EXPECT_TRUE(nothing.cpu().equal(at::zeros({2, 3})));
}

TEST(AtenKernels, MeasuresItsMatMul) {
  EXPECT_GT(MeasureMatMulPeak(at::kFloat, FakeDevice()), 1e8);
}

TEST(AtenKernels, Linear) {
  Seed(2);
  for (LinearLayout layout : {LinearLayout::kOutIn, LinearLayout::kInOut}) {
    const Operation linear = [&](const Tensors& x, const Parameters& w) {
      return Linear(x[0], w[0], &w[1], layout);
    };
    const Operation exact = [&](const Tensors& x, const Parameters& w) {
      return reference::Linear(x[0], WeightOf(w[0]), WeightOf(w[1]), layout);
    };
    const Tensor weight = at::randn({7, 12}, at::kDouble);
    const Tensors weights = {layout == LinearLayout::kOutIn ? weight : weight.t(),
                             at::randn({7}, at::kDouble)};
    for (at::ScalarType dtype : kDtypes) {
      ExpectMatchesOnDevice(linear, exact, {at::randn({3, 5, 12}, at::kDouble)}, weights, dtype);
      ExpectMatchesOnDevice(linear, exact, {at::randn({15, 24}, at::kDouble).narrow(1, 3, 12)},
                            weights, dtype);
    }
  }
  const Tensor x = at::randn({4, 8}).to(at::kBFloat16), w = at::randn({3, 8}).to(at::kBFloat16);
  const Tensor y = FloatLinear(OnDevice(x), {OnDevice(w), {}});
  EXPECT_EQ(y.scalar_type(), at::kFloat);
  EXPECT_TRUE(Near(y.cpu(), at::linear(x.to(at::kDouble), w.to(at::kDouble)), at::kFloat));
}

TEST(AtenKernels, AddBias) {
  const Operation add = [](const Tensors& x, const Parameters& b) { return AddBias(x[0], b[0]); };
  const Operation exact = [](const Tensors& x, const Parameters& b) {
    return x[0] + WeightOf(b[0]);
  };
  for (at::ScalarType dtype : kDtypes) {
    ExpectMatchesOnDevice(add, exact, {at::randn({2, 3, 6}, at::kDouble)},
                          {at::randn({6}, at::kDouble)}, dtype);
  }
}

TEST(AtenKernels, Embedding) {
  Seed(3);
  const Tensor indices = at::randint(11, {4, 6}, at::kLong);
  const Operation exact = [&](const Tensors&, const Parameters& w) {
    return reference::Embedding(indices, WeightOf(w[0]));
  };
  const Operation embedding = [&](const Tensors&, const Parameters& w) {
    return Embedding(OnDevice(indices), w[0]);
  };
  for (at::ScalarType dtype : kDtypes)
    ExpectMatchesOnDevice(embedding, exact, {}, {at::randn({11, 5}, at::kDouble)}, dtype);
  // Rounded where they are added, as on the host.
  Tensor grads[2];
  for (bool fake : {false, true}) {
    const c10::Device device = fake ? FakeDevice() : c10::Device(at::kCPU);
    const Tensor value = at::ones({11, 5}, at::kBFloat16).to(device).requires_grad_(true);
    const Parameter weight{value, at::full_like(value, 0.5)};
    const Tensor upstream = at::arange(120).view({4, 6, 5}).remainder(7).to(value.options());
    Embedding(indices.to(device), weight).backward(upstream);
    grads[fake] = weight.grad.cpu();
  }
  EXPECT_TRUE(grads[1].equal(grads[0]));
}

TEST(AtenKernels, TakeRows) {
  Seed(4);
  const Tensor index = at::tensor({4, 0, 4, 2, 4, 6, 0, 1}, at::kLong);
  const Operation take = [&](const Tensors& x, const Parameters&) {
    return TakeRows(x[0], OnDevice(index));
  };
  const Operation exact = [&](const Tensors& x, const Parameters&) {
    return x[0].index_select(0, index);
  };
  const Tensor wide = at::randn({7, 3, 22}, at::kDouble);
  for (at::ScalarType dtype : kDtypes) {
    ExpectMatchesOnDevice(take, exact, {wide}, {}, dtype);
    ExpectMatchesOnDevice(take, exact, {wide.select(1, 1).narrow(1, 4, 10)}, {}, dtype);
  }
}

TEST(AtenKernels, Accumulate) {
  const Tensor x = at::randn({40}), sum = at::randn({40});
  for (at::ScalarType from : kDtypes) {
    for (at::ScalarType to : kDtypes) {
      const Tensor total = sum.to(to), fake = OnDevice(total);
      Accumulate(x.to(from), total);
      Accumulate(OnDevice(x.to(from)), fake);
      EXPECT_TRUE(fake.cpu().equal(total)) << from << " into " << to;
    }
  }
}

// Three experts, one of them without rows, and 70 tokens with two choices each of which some are
// not taken.
TEST(AtenKernels, Experts) {
  Seed(5);
  constexpr int64_t kTokens = 70, kChoices = 2;
  Tensor choice_S = at::arange(kTokens * kChoices, at::kLong).slice(0, 0, kTokens * kChoices, 3);
  const int64_t rows = choice_S.numel(), first = rows / 3;
  Tensor row_RK = at::zeros({kTokens * kChoices}, at::kLong),
         taken_RK = at::zeros({kTokens * kChoices});
  row_RK.index_put_({choice_S}, at::arange(rows, at::kLong));
  taken_RK.index_fill_(0, choice_S, 1);
  row_RK = row_RK.view({kTokens, kChoices});
  taken_RK = taken_RK.view({kTokens, kChoices});
  const auto layer = [&](c10::Device device) {
    return Operation([&, device](const Tensors& x, const Parameters& w) {
      const Tensor taken = taken_RK.to(SumDtype(x[0].scalar_type())).to(device);
      const ExpertRows at{choice_S.to(device), row_RK.to(device), taken};
      const int64_t counts[] = {first, 0, rows - first};
      const Tensor up = GroupedLinear(TokensToRows(x[0], at), counts, w);
      return RowsToTokens(up, x[1].to(taken.scalar_type()) * taken, at);
    });
  };
  const Tensors weights = {at::randn({6, 8}, at::kDouble), at::randn({6, 8}, at::kDouble),
                           at::randn({6, 8}, at::kDouble)};
  for (at::ScalarType dtype : kDtypes) {
    // Three roundings, one after another.
    ExpectMatchesOnDevice(
        layer(FakeDevice()), layer(at::kCPU),
        {at::randn({kTokens, 8}, at::kDouble), at::rand({kTokens, kChoices}, at::kDouble)}, weights,
        dtype, 3);
  }
}

struct HeadCase {
  int64_t rows, channels, vocabulary, chunk_rows;
  double label_smoothing;
};
constexpr HeadCase kHeadCases[] = {
    {7, 5, 3, 2, 0}, {33, 16, 65, 0, 0}, {20, 64, 257, 8, 0.1}, {1, 3, 17, 0, 0.2}};

void ExpectExactHeads() {
  Seed(6);
  for (at::ScalarType dtype : kDtypes) {
    for (const HeadCase& c : kHeadCases) {
      Tensor targets = at::randint(c.vocabulary, {c.rows}, at::kLong);
      if (c.rows > 2) targets[1] = -100;
      const CrossEntropyOptions options{.denominator = 3.5,
                                        .ignore_index = -100,
                                        .chunk_rows = c.chunk_rows,
                                        .label_smoothing = c.label_smoothing};
      const Tensors hidden = {at::randn({c.rows, c.channels}, at::kDouble)},
                    weights = {at::randn({c.vocabulary, c.channels}, at::kDouble)};
      ExpectMatchesOnDevice(
          [&](const Tensors& x, const Parameters& w) {
            return LinearCrossEntropy(x[0], w[0], OnDevice(targets), options);
          },
          [&](const Tensors& x, const Parameters& w) {
            return reference::LinearCrossEntropy(x[0], WeightOf(w[0]), targets, options);
          },
          hidden, weights, dtype, 2);
      ExpectMatchesOnDevice(
          [&](const Tensors& x, const Parameters& w) {
            return LinearLogprobs(x[0], w[0], OnDevice(targets), options);
          },
          [&](const Tensors& x, const Parameters& w) {
            return reference::LinearLogprobs(x[0], WeightOf(w[0]), targets, options);
          },
          hidden, weights, dtype, 2);
    }
  }
}

TEST(AtenKernels, CrossEntropyAndLogprobs) { ExpectExactHeads(); }

TEST(AtenKernels, CrossEntropyAndLogprobsWithAKernel) {
  std::optional<FakeMemoryOpen> open;
  SetEmulatorMemoryGuard([&](bool begins) { begins ? void(open.emplace()) : open.reset(); });
  RegisterDeviceKernels(c10::DeviceType::PrivateUse1, &EmulatedKernels());
  ExpectExactHeads();
  RegisterDeviceKernels(c10::DeviceType::PrivateUse1, nullptr);
  SetEmulatorMemoryGuard({});
}

TEST(AtenKernels, CrossEntropyByUnitGradientAndOfNothing) {
  Seed(7);
  const Tensor targets = at::randint(50, {40}, at::kLong), hidden = at::randn({40, 16});
  const Tensor matrix = at::randn({50, 16});
  for (at::ScalarType grad_dtype : {at::kFloat, at::kBFloat16}) {
    Tensor grads[2];
    for (bool unit : {false, true}) {
      const Parameter weight{OnDevice(matrix).requires_grad_(true),
                             OnDevice(at::ones({50, 16}, grad_dtype))};
      LinearCrossEntropy(OnDevice(hidden), weight, OnDevice(targets),
                         {.denominator = 40, .chunk_rows = 16, .unit_gradient = unit})
          .backward();
      grads[unit] = weight.grad.cpu();
    }
    EXPECT_TRUE(Near(grads[1], grads[0], grad_dtype));
  }
  const Parameter weight{OnDevice(matrix).requires_grad_(true), OnDevice(at::ones({50, 16}))};
  const Tensor none = LinearCrossEntropy(OnDevice(at::empty({0, 16})), weight,
                                         OnDevice(at::empty({0}, at::kLong)), {});
  none.backward();
  EXPECT_EQ(none.item<float>(), 0);
  EXPECT_TRUE(weight.grad.cpu().equal(at::ones({50, 16})));
}

// What a padded place computes is nobody's business, unless it is asked for.
TEST(AtenKernels, IgnoredRowsNeedNotBeFinite) {
  Tensor hidden = at::randn({3, 4});
  hidden[1][2] = NAN;
  const Tensor device_hidden = OnDevice(hidden).requires_grad_(true);
  const Parameter weight{OnDevice(at::randn({9, 4})), {}};
  Tensor targets = at::tensor({1, -100, 8}, at::kLong);
  const Tensor loss = LinearCrossEntropy(device_hidden, weight, OnDevice(targets), {});
  loss.backward();
  EXPECT_TRUE(std::isfinite(loss.item<float>()));
  EXPECT_TRUE(device_hidden.grad().isfinite().all().item<bool>());
  EXPECT_TRUE(device_hidden.grad()[1].eq(0).all().item<bool>());
  targets[1] = 2;
  EXPECT_FALSE(std::isfinite(
      LinearCrossEntropy(device_hidden, weight, OnDevice(targets), {}).item<float>()));
}

// Operators by which the host learns what a device has computed, and so waits for it.
std::vector<std::string> waits;
std::mutex waits_mutex;

std::unique_ptr<at::ObserverContext> NoteWait(const at::RecordFunction& function) {
  static const std::set<std::string> names = {"aten::_local_scalar_dense", "aten::nonzero",
                                              "aten::equal", "aten::is_nonzero"};
  if (names.contains(function.name())) {
    const std::lock_guard lock(waits_mutex);
    waits.push_back(function.name());
  }
  return nullptr;
}

TEST(AtenKernels, NothingWaitsForTheDevice) {
  const auto weight = [](int64_t rows, int64_t columns) {
    const Tensor value = OnDevice(at::randn({rows, columns})).requires_grad_(true);
    return Parameter{value, at::zeros_like(value)};
  };
  const Parameter table = weight(11, 8), up = weight(6, 8), head = weight(11, 6),
                  experts[] = {weight(6, 6), weight(6, 6)};
  const Tensor tokens = OnDevice(at::randint(11, {20}, at::kLong)),
               order = OnDevice(at::randperm(20)), weights = OnDevice(at::rand({20, 1}));
  const ExpertRows rows{order, order.argsort().unsqueeze(1), {}};
  const auto handle = at::addGlobalCallback(at::RecordFunctionCallback(NoteWait));
  waits.clear();
  Tensor x = Linear(TakeRows(Embedding(tokens, table), order), up);
  x = RowsToTokens(GroupedLinear(TokensToRows(x, rows), std::array<int64_t, 2>{13, 7}, experts),
                   weights, rows);
  const Tensor loss = LinearCrossEntropy(x, head, tokens, {.denominator = 20, .chunk_rows = 8}) -
                      LinearLogprobs(x, head, tokens, {}).mean();
  loss.backward();
  EXPECT_THAT(waits, testing::IsEmpty());
  EXPECT_TRUE(std::isfinite(loss.item<float>()));
  EXPECT_THAT(waits, testing::Not(testing::IsEmpty()));
  at::removeCallback(handle);
}

// A plain operation on the device against itself on the host, in float64.
void ExpectSameOnDevice(const std::function<Tensors(c10::Device)>& run) {
  const Tensors want = run(at::kCPU), got = run(FakeDevice());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_TRUE(got[i].is_privateuseone());
    EXPECT_TRUE(Near(got[i].cpu(), want[i], at::kDouble)) << "result " << i;
  }
}

TEST(AtenKernels, ReferenceAttention) {
  Seed(8);
  const Tensor q = at::randn({2, 6, 4, 8}, at::kDouble), k = at::randn({2, 6, 2, 8}, at::kDouble),
               v = at::randn({2, 6, 2, 8}, at::kDouble);
  const Tensor documents = at::tensor({0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 2, 2}, at::kInt).view({2, 6});
  // Streams of numbers stay in host memory.
  const AttentionDropout dropout{.rate = 0.3, .keys_B = at::tensor({5, 9}, at::kLong)};
  ExpectSameOnDevice([&](c10::Device device) {
    const Tensor lengths = at::tensor({6, 3}, at::kLong).to(device);
    AttentionSoFar so_far(q.to(device));
    const AttentionPiece piece{.query_place = 6,
                               .key_place = 3,
                               .starts_BT = at::full({2, 6}, 4, at::kInt).to(device),
                               .dropout = dropout};
    reference::AttendPiece(q.to(device), k.to(device), v.to(device), piece, so_far);
    const auto sums = [&](const Tensor& x) { return at::zeros_like(x.to(device)); };
    const AttentionSums gradients{sums(q), sums(k), sums(v)};
    reference::AttendPieceBackward(q.to(device), k.to(device), v.to(device), piece, so_far,
                                   at::ones_like(q.to(device)), gradients);
    return Tensors{
        reference::CausalAttention(q.to(device), k.to(device), v.to(device),
                                   {.documents_BT = documents.to(device), .dropout = dropout}),
        reference::CachedAttention(q.narrow(1, 0, 2).to(device), k.to(device), v.to(device),
                                   lengths, 0.5),
        so_far.out_BTNH,
        so_far.lse_BNT,
        gradients.q_BTNH,
        gradients.k_BSKH,
        gradients.v_BSKH};
  });
}

TEST(AtenKernels, ReferenceOfTheRest) {
  Seed(9);
  const Tensor x = at::randn({2, 3, 8}, at::kDouble), y = at::randn({2, 3, 8}, at::kDouble),
               w = at::randn({8}, at::kDouble), b = at::randn({8}, at::kDouble);
  const Tensor keys = at::arange(6, at::kLong), places = at::arange(6, at::kLong);
  const RotaryTable table{at::rand({10, 4}, at::kDouble), at::rand({10, 4}, at::kDouble)};
  const Tensor positions = at::tensor({3, 4, 5, 0, 1, 2}, at::kLong).view({2, 3});
  ExpectSameOnDevice([&](c10::Device device) {
    const auto to = [&](const Tensor& t) { return t.to(device, at::kDouble, false, true); };
    Tensor weights = to(x), moment1 = to(y), moment2 = to(y.square()), copy = to(x),
           sgd_weights = to(x), momentum = to(y);
    const Tensor grads = to(y);
    const AdamWOptions adamw{.learning_rate = 0.1, .weight_decay = 0.2, .step = 3};
    const SgdOptions sgd{.learning_rate = 0.1, .momentum = 0.9, .step = 2};
    reference::AdamWStep(weights, grads, moment1, moment2, copy, adamw);
    reference::SgdStep(sgd_weights, grads, momentum, copy, sgd);
    return Tensors{reference::RmsNorm(to(x), to(w), 1e-5),
                   reference::LayerNorm(to(x), to(w), to(b), 1e-5),
                   reference::ApplyRotary(to(x).unsqueeze(2), positions.to(device),
                                          {to(table.cos_PH), to(table.sin_PH)}),
                   reference::SwiGlu(to(x), to(y)),
                   reference::Gelu(to(x), GeluKind::kTanh),
                   reference::Gelu(to(x), GeluKind::kErf),
                   reference::Dropout(to(x), 0.4, keys, places),
                   reference::Dropout(to(x), 0.4, keys.to(device), places.to(device)),
                   weights,
                   moment1,
                   moment2,
                   copy,
                   sgd_weights,
                   momentum};
  });
}

}  // namespace
}  // namespace shoal
