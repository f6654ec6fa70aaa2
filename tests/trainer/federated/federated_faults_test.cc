// Clients that send nonsense, cohorts that are too small, runs that are resumed with other recipes:
// nobody else pays for them, and epsilon says what was spent.
#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/federated/federated_job.h"
#include "trainer/federated/privacy_accountant.h"
#include "trainer/federated/update_sum.h"

namespace shoal {
namespace {

using Overrides = std::vector<std::string>;

Overrides Joined(Overrides a, const Overrides& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// All 12 clients in each round: a sampling rate of 1.
const Overrides kPrivate = {"federated.weighting=equal", "federated.privacy.clip_norm=0.1"};

TEST(FederatedFaults, EpsilonCountsEachRoundWithTheNoiseItHad) {
  const FederatedResult result =
      RunFederatedJob({.rounds = 5,
                       .overrides = Joined(kPrivate, {"federated.privacy.noise_multiplier=4"}),
                       .restart_after = 2,
                       .before_restart = {"federated.privacy.noise_multiplier=1.5"}});
  ASSERT_EQ(result.rounds.size(), 5u);
  PrivacyAccountant accountant;
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(accountant.Compose({1, round < 2 ? 1.5 : 4.0, 1}).ok());
    EXPECT_EQ(*result.rounds[round].epsilon, accountant.Spent(1e-5).epsilon) << round + 1;
  }
}

TEST(FederatedFaults, AResumeWithMoreRoundsSpendsWhatIsLeftOfTheBudget) {
  const Overrides budget = Joined(kPrivate, {"federated.privacy.target_epsilon=3"});
  FederatedJob job{.rounds = 10,
                   .overrides = budget,
                   .restart_after = 2,
                   .before_restart = {"training.max_steps=5"}};
  const FederatedResult result = RunFederatedJob(job);
  ASSERT_EQ(result.rounds.size(), 10u);
  for (int round = 1; round < 10; ++round)
    EXPECT_GT(*result.rounds[round].epsilon, *result.rounds[round - 1].epsilon) << round + 1;
  EXPECT_LE(*result.rounds[9].epsilon, 3.0);
  EXPECT_GT(*result.rounds[9].epsilon, 2.99);
  const double z = *CalibrateNoiseMultiplier(3, 1e-5, 1, 5);
  PrivacyAccountant accountant;
  ASSERT_TRUE(accountant.Compose({1, z, 2}).ok());
  EXPECT_EQ(*result.rounds[1].epsilon, accountant.Spent(1e-5).epsilon);

  job.restart_after = 5;  // All of it is spent
  job.may_fail = true;
  EXPECT_THAT(RunFederatedJob(job).error, testing::HasSubstr("epsilon 3 is spent"));
}

TEST(FederatedFaults, NoEpsilonCoversRoundsWithoutNoise) {
  const FederatedResult result =
      RunFederatedJob({.rounds = 4,
                       .overrides = Joined(kPrivate, {"federated.privacy.noise_multiplier=1"}),
                       .restart_after = 2,
                       .before_restart = {"federated.privacy.noise_multiplier=0"},
                       .may_fail = true});
  EXPECT_THAT(result.error, testing::HasSubstr("without noise"));
}

// Six clients of 8 images each. Those of the first are bright; those of the others are black, so
// that only biases learn, and no learning rate makes them anything but finite.
FederatedJob OneDiverges(const Overrides& overrides) {
  std::string csv = "who";
  for (int p = 0; p < 16; ++p) absl::StrAppend(&csv, ",p", p);
  absl::StrAppend(&csv, ",class\n");
  for (int row = 0; row < 48; ++row) {
    absl::StrAppend(&csv, row / 8);
    for (int p = 0; p < 16; ++p) absl::StrAppend(&csv, row / 8 == 0 ? ",16" : ",0");
    absl::StrAppend(&csv, ",", (row * row / 5 + row) % 3, "\n");
  }
  return {.overrides = Joined(
              {"federated.partition=natural", "federated.client_column=who",
               "federated.num_clients=null", "federated.local_steps=4", "model.dtype=float32",
               "optimizer.learning_rate=1e14", "federated.update_range=1e15"},
              overrides),
          .csv = csv};
}

double Largest(const std::vector<double>& values) {
  double largest = 0;
  for (double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

TEST(FederatedFaults, ThoseStackedWithADivergingClientComeOutAsIfAlone) {
  for (const char* patience : {"1", "10"}) {  // Steps of its that may be skipped
    const Overrides options = {absl::StrCat("training.max_skipped_steps=", patience)};
    const FederatedResult alone = RunFederatedJob(OneDiverges(options));
    const FederatedResult stacked =
        RunFederatedJob(OneDiverges(Joined(options, {"federated.stacked_clients=16"})));
    ASSERT_EQ(alone.rounds.size(), 3u);
    EXPECT_EQ(alone.rounds[0].clients, 5);
    for (size_t round = 0; round < 3; ++round) {
      EXPECT_EQ(stacked.rounds[round].clients, alone.rounds[round].clients) << round + 1;
      EXPECT_EQ(stacked.rounds[round].dropped, alone.rounds[round].dropped) << round + 1;
    }
    ASSERT_GT(Largest(alone.weights), 0);
    EXPECT_LT(LargestDifference(stacked.weights, alone.weights), 1e-6 * Largest(alone.weights));
  }
}

// With a rate at which the second step's logits overflow.
const Overrides kNotFinite = {"optimizer.learning_rate=1e25", "training.max_skipped_steps=1"};

TEST(FederatedFaults, RobustRulesBearASenderOfNonsense) {
  for (const Overrides& rule : {Overrides{"federated.aggregation=median"},
                                Overrides{"federated.aggregation=trimmed_mean",
                                          "federated.trim=0.2", "federated.stacked_clients=16"}}) {
    const FederatedResult result = RunFederatedJob(OneDiverges(Joined(rule, kNotFinite)));
    ASSERT_EQ(result.rounds.size(), 3u) << rule[0];
    for (const RoundMetrics& round : result.rounds) {
      EXPECT_EQ(round.dropped, 0) << rule[0];
      EXPECT_TRUE(std::isfinite(round.grad_norm) && std::isfinite(round.loss) &&
                  std::isfinite(round.client_norm))
          << rule[0];
    }
    for (double weight : result.weights) ASSERT_TRUE(std::isfinite(weight)) << rule[0];
  }
}

TEST(FederatedFaults, KrumBearsASenderOfNonsense) {
  const absl::Status status = RunRanks(1, [](Communicator& outer) -> absl::Status {
    FederatedSection krum;
    krum.set_aggregation(FederatedSection::krum);
    krum.set_num_byzantine(1);
    RoundUpdates updates({.federated = krum, .size = 3, .dtype = at::kDouble}, outer);
    const std::vector<double> ones(5, 1.0);
    SHOAL_RETURN_IF_ERROR(updates.Begin({.weights = ones, .divisors = ones}));
    for (int task = 0; task < 5; ++task) {
      const Tensor delta = at::full({3}, task == 2 ? std::nan("") : 1 + 0.1 * task, at::kDouble);
      const auto taken = updates.Add(task, delta, delta.norm().item<double>());
      EXPECT_TRUE(taken.ok() && *taken) << task;
    }
    Tensor mean = at::zeros({3}, at::kDouble);
    SHOAL_RETURN_IF_ERROR(updates.Finish(std::vector<bool>(5, true), mean));
    EXPECT_GE(mean.min().item<double>(), 1.0);  // One of the four
    EXPECT_LE(mean.max().item<double>(), 1.4);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(FederatedFaults, MoreNonsenseThanARuleBearsLosesTheRoundAndNotTheModel) {
  const FederatedResult result = RunFederatedJob(
      OneDiverges(Joined(kNotFinite, {"federated.aggregation=trimmed_mean", "federated.trim=0"})));
  ASSERT_EQ(result.rounds.size(), 3u);
  for (const RoundMetrics& round : result.rounds) {
    EXPECT_EQ(round.clients, 6);
    EXPECT_EQ(round.grad_norm, 0);
  }
  for (double weight : result.weights) ASSERT_TRUE(std::isfinite(weight));
}

TEST(FederatedFaults, LargeUpdatesAreClippedBeforeTheirRangeIsLookedAt) {
  const Overrides options = Joined(kPrivate, {"optimizer.learning_rate=10"});
  const FederatedResult wide = RunFederatedJob({.overrides = options});
  const FederatedResult narrow =
      RunFederatedJob({.overrides = Joined(options, {"federated.update_range=0.11"})});
  ASSERT_EQ(narrow.rounds.size(), 3u);
  for (const RoundMetrics& round : narrow.rounds) {
    EXPECT_EQ(round.clients, 12);
    EXPECT_GT(round.client_norm, 1);  // Far beyond the range before clipping
  }
  EXPECT_LT(LargestDifference(narrow.weights, wide.weights), 1e-10);
}

TEST(FederatedFaults, ACohortTooSmallForItsMasksLosesItsRoundAlone) {
  const FederatedResult result =
      RunFederatedJob({.ranks = 2,
                       .rounds = 12,
                       .overrides = {"federated.sampling=poisson", "federated.clients_per_round=2",
                                     "federated.secure_aggregation.enabled=true"}});
  ASSERT_EQ(result.rounds.size(), 12u);
  int lost = 0;
  for (const RoundMetrics& round : result.rounds) {
    EXPECT_EQ(round.grad_norm > 0, round.clients > 1) << round.round;
    lost += round.clients == 0 && round.dropped == 1;
  }
  EXPECT_GT(lost, 0);
  EXPECT_LT(lost, 12);
}

TEST(FederatedFaults, ACohortTooSmallForKrumLosesItsRoundAlone) {
  const FederatedResult result =
      RunFederatedJob({.rounds = 12,
                       .overrides = {"federated.sampling=poisson", "federated.clients_per_round=5",
                                     "federated.aggregation=krum", "federated.num_byzantine=1"}});
  ASSERT_EQ(result.rounds.size(), 12u);
  int lost = 0;
  for (const RoundMetrics& round : result.rounds) {
    EXPECT_EQ(round.grad_norm > 0, round.clients >= 5) << round.round;
    lost += round.clients < 5;
  }
  EXPECT_GT(lost, 0);
  EXPECT_LT(lost, 12);
}

TEST(FederatedFaults, SettingsThatSuitNoCohortAreMistakesInTheRecipe) {
  for (const auto& [overrides, words] : std::vector<std::pair<Overrides, std::string>>{
           {{"federated.secure_aggregation.enabled=true",
             "federated.secure_aggregation.threshold=13"},
            "a threshold of 13 shares, but there are 12"},
           {{"federated.secure_aggregation.enabled=true", "federated.clients_per_round=1"},
            "secure aggregation of 1 clients"},
           {{"federated.secure_aggregation.enabled=true",
             "federated.secure_aggregation.neighbours=3", "federated.sampling=poisson",
             "federated.clients_per_round=6"},
            "must be even"},
           {{"federated.aggregation=krum", "federated.num_byzantine=2",
             "federated.krum_selected=11"},
            "selects 11 of 12"}}) {
    const FederatedResult result = RunFederatedJob({.overrides = overrides, .may_fail = true});
    EXPECT_THAT(result.error,
                testing::AllOf(testing::HasSubstr("job.yaml"), testing::HasSubstr(words)));
    EXPECT_TRUE(result.rounds.empty());
  }
}

}  // namespace
}  // namespace shoal
