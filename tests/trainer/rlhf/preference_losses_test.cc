#include "trainer/rlhf/preference_losses.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

using at::Tensor;

Tensor One(double value) { return at::full({1}, value, at::kDouble); }
double At0(const Tensor& losses) { return losses[0].item<double>(); }

// pi = (-10, -12), reference = (-11, -11.5), answers of 4 and 6 tokens: d = 1.5. The values were
// worked out by hand from the papers' formulas, apart from this code.
class PreferenceLosses : public testing::Test {
 protected:
  Tensor chosen_ = One(1.0), rejected_ = One(-0.5);
  Tensor chosen_mean_ = One(-2.5), rejected_mean_ = One(-2.0);
};

TEST_F(PreferenceLosses, Dpo) {
  EXPECT_NEAR(At0(DpoLoss(chosen_, rejected_, {.beta = 0.1})), 0.620957, 5e-7);
  EXPECT_NEAR(At0(DpoLoss(chosen_, rejected_, {.beta = 0.1, .label_smoothing = 0.1})), 0.635957,
              5e-7);
  EXPECT_DOUBLE_EQ(At0(DpoLoss(One(3), One(3), {})), std::log(2.0));
}

TEST_F(PreferenceLosses, Ipo) {
  EXPECT_NEAR(At0(IpoLoss(chosen_, rejected_, 0.1)), 12.25, 1e-12);
  EXPECT_NEAR(At0(IpoLoss(chosen_ / 4, rejected_ / 6, 0.1)), 21.7778, 5e-5);
}

TEST_F(PreferenceLosses, SimPo) {
  EXPECT_NEAR(At0(SimPoLoss(chosen_mean_, rejected_mean_, {.beta = 2, .gamma = 0.5})), 1.701413,
              5e-7);
}

TEST_F(PreferenceLosses, Kto) {
  const Tensor logratios = at::cat({chosen_, rejected_});
  const Tensor desirable = (at::tensor({1, 0}) > 0);
  const Tensor losses = KtoLoss(logratios, desirable, One(0.3), {.beta = 0.1});
  EXPECT_NEAR(losses[0].item<double>(), 0.482507, 5e-7);
  EXPECT_NEAR(losses[1].item<double>(), 0.480011, 5e-7);
  const Tensor weighted = KtoLoss(logratios, desirable, One(0.3),
                                  {.beta = 0.1, .desirable_weight = 2, .undesirable_weight = 3});
  EXPECT_NEAR(weighted[0].item<double>(), 2 * 0.482507, 2e-6);
  EXPECT_NEAR(weighted[1].item<double>(), 3 * 0.480011, 2e-6);
  EXPECT_EQ(KtoReferencePoint(One(-3), 2).item<double>(), 0);
  EXPECT_EQ(KtoReferencePoint(One(3), 2).item<double>(), 1.5);
}

TEST_F(PreferenceLosses, Orpo) {
  EXPECT_NEAR(0.1 * At0(OrpoOddsLoss(chosen_mean_, rejected_mean_)), 0.101169, 5e-7);
}

TEST_F(PreferenceLosses, BradleyTerry) {
  EXPECT_NEAR(At0(BradleyTerryLoss(One(1.0), One(0.2))), 0.371101, 5e-7);
  EXPECT_NEAR(At0(BradleyTerryLoss(One(1.5), One(0.2), One(0.5))), 0.371101, 5e-7);
  EXPECT_NEAR(At0(BradleyTerryLoss(One(1.0), One(0.2), {}, 0.01)), 0.371101 + 0.0144, 5e-7);
}

// d loss / d log-ratio by autograd against finite differences.
TEST_F(PreferenceLosses, Gradients) {
  const auto check = [](const char* name, auto loss, double at) {
    Tensor x = One(at).set_requires_grad(true);
    loss(x).sum().backward();
    const double h = 1e-6;
    const double slope = (At0(loss(One(at + h))) - At0(loss(One(at - h)))) / (2 * h);
    EXPECT_NEAR(x.grad().item<double>(), slope, 1e-6) << name;
  };
  check(
      "dpo", [&](const Tensor& x) { return DpoLoss(x, rejected_, {.label_smoothing = 0.2}); }, 0.7);
  check(
      "ipo", [&](const Tensor& x) { return IpoLoss(x, rejected_, 0.3); }, 0.7);
  check(
      "simpo", [&](const Tensor& x) { return SimPoLoss(rejected_mean_, x, {}); }, -1.5);
  check(
      "kto", [&](const Tensor& x) { return KtoLoss(x, at::tensor({0}) > 0, One(0.1), {}); }, 0.7);
  check(
      "orpo", [&](const Tensor& x) { return OrpoOddsLoss(x, rejected_mean_); }, -0.8);
  check(
      "reward", [&](const Tensor& x) { return BradleyTerryLoss(x, One(0.1), {}, 0.2); }, 0.7);
}

}  // namespace
}  // namespace shoal
