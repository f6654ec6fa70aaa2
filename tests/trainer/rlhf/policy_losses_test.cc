#include "trainer/rlhf/policy_losses.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "trainer/rlhf/advantages.h"
#include "trainer/rlhf/kl_estimators.h"

namespace shoal {
namespace {

using at::Tensor;

Tensor Row(std::vector<double> values) { return at::tensor(values, at::kDouble).unsqueeze(0); }
void ExpectRow(const Tensor& got, std::vector<double> want, double tolerance) {
  ASSERT_EQ(got.numel(), static_cast<int64_t>(want.size()));
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT_NEAR(got.flatten()[static_cast<int64_t>(i)].item<double>(), want[i], tolerance) << i;
}

// Golden values of these tests were worked out by hand from the papers' formulas.
TEST(PolicyLosses, PpoClip) {
  const Tensor logratio = Row({std::log(4.0), std::log(0.5), std::log(1.5), 0.0});
  const Tensor advantages = Row({-1, -1, 1, 2});
  const Tensor old = at::zeros_like(logratio);
  const PolicyLoss loss = PpoClipLoss(logratio, old, advantages, {});
  ExpectRow(loss.loss_BT, {4, 0.8, -1.2, -2}, 1e-12);
  ExpectRow(loss.clipped_BT.to(at::kDouble), {0, 1, 1, 0}, 0);
  ExpectRow(PpoClipLoss(logratio, old, advantages, {.dual = 3}).loss_BT, {3, 0.8, -1.2, -2}, 1e-12);
  ExpectRow(PpoClipLoss(logratio, old, advantages, {.high = 0.28}).loss_BT, {4, 0.8, -1.28, -2},
            1e-12);
}

TEST(PolicyLosses, RatiosNeverOverflow) {
  const Tensor far = at::full({1, 1}, 1000.0).set_requires_grad(true);
  const PolicyLoss loss = PpoClipLoss(far, at::zeros({1, 1}), -at::ones({1, 1}), {});
  EXPECT_TRUE(std::isfinite(loss.loss_BT.item<double>()));
  loss.loss_BT.sum().backward();
  EXPECT_TRUE(at::isfinite(far.grad()).all().item<bool>());
}

// Where the policy is the one that answered, the loss is -A and its gradient the policy gradient's.
TEST(PolicyLosses, GradientIsThePolicyGradient) {
  Tensor logprobs = Row({-1.0, -2.0, -0.5}).set_requires_grad(true);
  const Tensor advantages = Row({1.5, -0.5, 0.25}), mask = at::ones({1, 3}, at::kBool);
  PpoClipLoss(logprobs, logprobs.detach(), advantages, {}).loss_BT.sum().backward();
  ExpectRow(logprobs.grad(), {-1.5, 0.5, -0.25}, 1e-15);
  logprobs.mutable_grad() = Tensor();
  GspoLoss(logprobs, logprobs.detach(), advantages, mask, {}).loss_BT.sum().backward();
  ExpectRow(logprobs.grad(), {-1.5, 0.5, -0.25}, 1e-15);
}

TEST(PolicyLosses, GspoRatioIsTheGeometricMean) {
  const Tensor logprobs = Row({0.1, 0.2, 9}), old = Row({0, 0, 0}), mask = Row({1, 1, 0}) > 0;
  const PolicyLoss loss = GspoLoss(logprobs, old, Row({1, 1, 1}), mask, {});
  ExpectRow(loss.ratio_BT, {std::exp(0.15), std::exp(0.15), std::exp(0.15)}, 1e-12);
}

TEST(PolicyLosses, Value) {
  // Unclipped 0.5 (1 - 3)^2 = 2; the value is held at 0.2, 0.5 (0.2 - 3)^2 = 3.92.
  EXPECT_NEAR(ValueLoss(Row({1}), Row({0}), Row({3}), 0.2).item<double>(), 3.92, 1e-12);
  EXPECT_NEAR(ValueLoss(Row({1}), Row({0}), Row({3}), 0).item<double>(), 2, 1e-12);
  EXPECT_NEAR(ValueLoss(Row({1}), Row({0}), Row({-3}), 0.2).item<double>(), 8, 1e-12);
}

TEST(PolicyLosses, Aggregation) {
  // A = +1 on two tokens, -1 on four, ratio 1: losses are -A.
  const Tensor mask = at::tensor({1, 1, 0, 0, 1, 1, 1, 1}).view({2, 4}) > 0;
  const Tensor loss = at::tensor({-1., -1., 0., 0., 1., 1., 1., 1.}, at::kDouble).view({2, 4});
  const auto mean = [&](LossAggregation aggregation) {
    return ((LossWeights(mask, aggregation, 8) * loss).sum() / 2).item<double>();
  };
  EXPECT_NEAR(mean(LossAggregation::kSequenceMean), 0, 1e-12);
  EXPECT_NEAR(mean(LossAggregation::kTokenMean), 1.0 / 3, 1e-12);
  EXPECT_NEAR(mean(LossAggregation::kMaximumLength), 0.125, 1e-12);
}

TEST(KlEstimators, Values) {
  const Tensor logprob = Row({-1}), reference = Row({-1.5});
  ExpectRow(KlEstimate(KlEstimator::kK1, logprob, reference), {0.5}, 1e-12);
  ExpectRow(KlEstimate(KlEstimator::kK2, logprob, reference), {0.125}, 1e-12);
  ExpectRow(KlEstimate(KlEstimator::kK3, logprob, reference), {0.106531}, 5e-7);
}

// Over a vocabulary of three, every expectation can be taken exactly: the mean gradient of
// KlPenalty over samples of an older policy is the gradient of KL(pi || reference), whatever the
// estimator; k1's own is zero, k3's own that of KL(reference || pi) at old = pi.
TEST(KlEstimators, GradientsAgainstTheExactDivergence) {
  const Tensor reference = at::log_softmax(at::tensor({0.3, -0.2, 0.5}, at::kDouble), 0);
  const Tensor logits = at::tensor({1.0, 0.1, -0.4}, at::kDouble);
  const Tensor older = at::log_softmax(at::tensor({0.6, 0.2, 0.1}, at::kDouble), 0);
  const auto gradient = [&](auto loss) {
    Tensor x = logits.clone().set_requires_grad(true);
    loss(at::log_softmax(x, 0)).backward();
    return x.grad();
  };
  const Tensor exact = gradient([&](const Tensor& p) { return (p.exp() * (p - reference)).sum(); });
  const Tensor reverse =
      gradient([&](const Tensor& p) { return (reference.exp() * (reference - p)).sum(); });
  for (KlEstimator estimator : {KlEstimator::kK1, KlEstimator::kK2, KlEstimator::kK3}) {
    const Tensor sampled = gradient([&](const Tensor& p) {
      return (older.exp() * KlPenalty(p, older, reference, {.estimator = estimator})).sum();
    });
    EXPECT_LT((sampled - exact).abs().max().item<double>(), 1e-12);
  }
  const auto own = [&](KlEstimator estimator) {
    return gradient([&](const Tensor& p) {
      return (p.detach().exp() * KlPenalty(p, p.detach(), reference,
                                           {.estimator = estimator, .unbiased_gradient = false}))
          .sum();
    });
  };
  EXPECT_LT(own(KlEstimator::kK1).abs().max().item<double>(), 1e-12);
  EXPECT_LT((own(KlEstimator::kK2) - exact).abs().max().item<double>(), 1e-12);
  EXPECT_LT((own(KlEstimator::kK3) - reverse).abs().max().item<double>(), 1e-12);
}

TEST(Advantages, Gae) {
  const Tensor mask = at::ones({1, 3}, at::kBool);
  const GaeResult gae = GeneralizedAdvantages(Row({0, 0, 1}), Row({.5, .4, .3}), mask, {},
                                              {.gamma = 1, .lambda = 0.95});
  ExpectRow(gae.advantages_BT, {.43675, .565, .7}, 1e-12);
  ExpectRow(gae.returns_BT, {.93675, .965, 1.0}, 1e-12);
  ExpectRow(Whiten(gae.advantages_BT, mask, {.unbiased = true}), {-.99134, -.01709, 1.00844}, 5e-6);
  ExpectRow(Whiten(gae.advantages_BT, mask, {.unbiased = false}), {-1.21414, -.02093, 1.23508},
            5e-6);
}

TEST(Advantages, GaeSkipsWhatIsNoAction) {
  // The same actions with a place between them that is none.
  const GaeResult gae =
      GeneralizedAdvantages(Row({0, 9, 0, 1, 9}), Row({.5, 9, .4, .3, 9}), Row({1, 0, 1, 1, 0}) > 0,
                            {}, {.gamma = 1, .lambda = 0.95});
  ExpectRow(gae.advantages_BT, {.43675, 0, .565, .7, 0}, 1e-12);
  ExpectRow(gae.returns_BT, {.93675, 0, .965, 1.0, 0}, 1e-12);
}

TEST(Advantages, GaeGoesOnFromWhereAnEpisodeWasCut) {
  const Tensor mask = at::ones({1, 2}, at::kBool);
  // delta_1 = 1 + 0.9 * 2 - 0.5 = 2.3, delta_0 = 1 + 0.9 * 0.5 - 1 = 0.45; A_0 = 0.45 + 0.72 * 2.3
  const GaeResult gae = GeneralizedAdvantages(Row({1, 1}), Row({1, .5}), mask, at::full({1}, 2.0),
                                              {.gamma = 0.9, .lambda = 0.8});
  ExpectRow(gae.advantages_BT, {2.106, 2.3}, 1e-12);
}

TEST(Advantages, Groups) {
  const Tensor rewards = at::tensor({1., 0., 0., 1.}, at::kDouble);
  ExpectRow(GroupAdvantages(rewards, {.group_size = 4}), {.865875, -.865875, -.865875, .865875},
            5e-7);
  ExpectRow(GroupAdvantages(rewards, {.group_size = 4, .epsilon = 1e-6}),
            {.866024, -.866024, -.866024, .866024}, 5e-7);
  ExpectRow(GroupAdvantages(rewards, {.group_size = 4, .scale = GroupScale::kNone}),
            {.5, -.5, -.5, .5}, 1e-12);
  ExpectRow(LeaveOneOutAdvantages(rewards, 4), {.666667, -.666667, -.666667, .666667}, 5e-7);
  // Means are of groups, the deviation of all: std of (1, 0, 3, 3) is 1.5.
  ExpectRow(GroupAdvantages(at::tensor({1., 0., 3., 3.}, at::kDouble),
                            {.group_size = 2, .scale = GroupScale::kBatchStd, .epsilon = 0}),
            {1 / 3.0, -1 / 3.0, 0, 0}, 1e-12);
}

TEST(Advantages, EqualRewardsTeachNothing) {
  const Tensor rewards = at::tensor({.1, .1, .1, .7, .7, .8}, at::kDouble);
  const Tensor advantages = GroupAdvantages(rewards, {.group_size = 3});
  ExpectRow(advantages.narrow(0, 0, 3), {0, 0, 0}, 0);
  ExpectRow(LeaveOneOutAdvantages(rewards, 3).narrow(0, 0, 3), {0, 0, 0}, 0);
  const Tensor equal = GroupsOfEqualRewards(rewards, 3);
  EXPECT_TRUE(equal[0].item<bool>());
  EXPECT_FALSE(equal[1].item<bool>());
}

TEST(Advantages, WhitenKeepsTheMeanIfAsked) {
  const Tensor values = Row({1, 2, 3, 100}), mask = Row({1, 1, 1, 0}) > 0;
  ExpectRow(Whiten(values, mask, {.shift_mean = false}), {1, 2, 3, 0}, 1e-6);
  ExpectRow(Whiten(values, mask), {-1, 0, 1, 0}, 1e-6);
}

}  // namespace
}  // namespace shoal
