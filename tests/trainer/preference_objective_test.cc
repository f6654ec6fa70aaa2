// Objectives over pairs on numbers worked out by hand from the papers' formulas.
#include "trainer/objectives/preference_objective.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "trainer/objectives/reward_objective.h"

namespace shoal {
namespace {

using Kind = PreferenceObjective::Kind;

// One pair: policy log-probabilities -10 and -12 of answers of 4 and 6 tokens, reference -11 and
// -11.5; then a second pair like it that only fills the batch.
Batch PairBatch() {
  Batch batch;
  batch.targets_BT = at::full({4, 8}, Batch::kIgnoreIndex, at::kLong);
  for (int row = 0; row < 4; ++row)
    batch.targets_BT[row].narrow(0, 1, row % 2 == 0 ? 4 : 6).fill_(3);
  batch.named["weight_E"] = at::tensor({1.0F, 0.0F});
  batch.named["reference_B"] = at::tensor({-11.0, -11.5, -7.0, -7.0}, at::kDouble);
  batch.named["reference_point"] = at::scalar_tensor(0.3, at::kDouble);
  return batch;
}

Activations PairHead(const Batch& batch) {
  Tensor logprobs = at::zeros({4, 8}, at::kDouble);
  for (int row = 0; row < 4; ++row) {
    const int tokens = row % 2 == 0 ? 4 : 6;
    logprobs[row].narrow(0, 1, tokens).fill_((row % 2 == 0 ? -10.0 : -12.0) / tokens);
  }
  Activations head;
  head.logprobs_BT = logprobs.set_requires_grad(true);
  return head;
}

struct Outcome {
  double loss;
  Tensor gradient_BT;
};

Outcome Evaluate(const PreferenceObjective::Options& options) {
  const PreferenceObjective objective(options);
  const Batch batch = PairBatch();
  const Activations head = PairHead(batch);
  ObjectiveMetrics metrics(objective.metric_names());
  const Tensor loss = objective.Loss(batch, head, metrics);
  loss.backward();
  Outcome outcome{loss.item<double>(), head.logprobs_BT.grad()};
  EXPECT_EQ(objective.Count(batch), options.kind == Kind::kKto ? 2 : 1);
  return outcome;
}

TEST(PreferenceObjectiveTest, LossesAreThoseOfThePapers) {
  EXPECT_NEAR(Evaluate({.kind = Kind::kDpo, .beta = 0.1}).loss, 0.620957, 1e-6);
  EXPECT_NEAR(Evaluate({.kind = Kind::kDpo, .beta = 0.1, .label_smoothing = 0.1}).loss, 0.635957,
              1e-6);
  EXPECT_NEAR(Evaluate({.kind = Kind::kIpo, .beta = 0.1}).loss, 21.7778, 1e-4);
  EXPECT_NEAR(Evaluate({.kind = Kind::kKto, .beta = 0.1}).loss, 0.482507 + 0.480011, 2e-6);
  // Mean log-probabilities -2.5 and -2: -log sigmoid(2 (-0.5) - 0.5).
  EXPECT_NEAR(Evaluate({.kind = Kind::kSimPo, .beta = 2.0, .gamma = 0.5}).loss, 1.701413, 1e-6);
}

TEST(PreferenceObjectiveTest, DpoGradientIsThePapers) {
  const Outcome outcome = Evaluate({.kind = Kind::kDpo, .beta = 0.1});
  // -beta sigmoid(-beta d) on each token of the chosen answer, its opposite on the rejected one's.
  const double want = -0.1 / (1 + std::exp(0.1 * 1.5));
  for (int64_t t = 0; t < 8; ++t) {
    EXPECT_NEAR(outcome.gradient_BT[0][t].item<double>(), want, 1e-15);
    EXPECT_NEAR(outcome.gradient_BT[1][t].item<double>(), -want, 1e-15);
  }
  EXPECT_EQ(outcome.gradient_BT.narrow(0, 2, 2).abs().max().item<double>(), 0);
}

TEST(PreferenceObjectiveTest, APolicyThatIsItsReferenceLosesLn2) {
  const PreferenceObjective objective({.kind = Kind::kDpo, .beta = 0.1});
  Batch batch = PairBatch();
  const Activations head = PairHead(batch);
  batch.named["reference_B"] = SequenceLogprobs(head.logprobs_BT.detach());
  ObjectiveMetrics metrics(objective.metric_names());
  EXPECT_EQ(objective.Loss(batch, head, metrics).item<double>(), std::log(2.0));
}

TEST(RewardObjectiveTest, ScoresAreTakenAtTheLastToken) {
  const RewardObjective objective(/*centering=*/0);
  Batch batch;
  batch.named["last_B"] = at::tensor({2, 1}, at::kLong);
  batch.named["weight_E"] = at::ones({1});
  Activations head;
  head.scores_BT =
      at::tensor({9.0, 9.0, 1.5, 9.0, 0.7, 9.0}, at::kDouble).view({2, 3}).set_requires_grad(true);
  ObjectiveMetrics metrics(objective.metric_names());
  const Tensor loss = objective.Loss(batch, head, metrics);
  EXPECT_NEAR(loss.item<double>(), 0.371101, 1e-6);  // -log sigmoid(0.8)
  loss.backward();
  const Tensor gradient = head.scores_BT.grad();
  EXPECT_NEAR(gradient[0][2].item<double>(), -1 / (1 + std::exp(0.8)), 1e-15);
  EXPECT_EQ(gradient.ne(0).sum().item<int64_t>(), 2);
  Batch unpaired = batch;
  unpaired.named["weight_E"] = at::zeros({1});
  EXPECT_EQ(objective.Count(unpaired), 0);
  EXPECT_EQ(objective.Loss(unpaired, head, metrics).item<double>(), 0);
}

}  // namespace
}  // namespace shoal
