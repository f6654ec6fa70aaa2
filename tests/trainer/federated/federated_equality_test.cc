// What a federated run computes does not depend on ranks, on who trains whom, on masks or restarts.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/trainer/federated/federated_job.h"

namespace shoal {
namespace {

using Overrides = std::vector<std::string>;

Overrides Joined(Overrides a, const Overrides& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(FederatedEquality, TheSameBitsOnAnyNumberOfRanksAndInAnyAssignment) {
  for (const Overrides& variant : FederatedVariants()) {
    const std::string what = absl::StrJoin(variant, " ");
    const FederatedResult one = RunFederatedJob({.ranks = 1, .overrides = variant});
    for (int ranks : {2, 4}) {
      ExpectSameBits(RunFederatedJob({.ranks = ranks, .overrides = variant}), one,
                     absl::StrCat(what, " on ", ranks, " ranks"));
    }
    ExpectSameBits(
        RunFederatedJob(
            {.ranks = 3, .overrides = Joined(variant, {"federated.assignment=round_robin"})}),
        one, absl::StrCat(what, " in turn on 3 ranks"));
  }
}

TEST(FederatedEquality, ARestartOnOtherRanksChangesNothing) {
  for (const Overrides& variant : FederatedVariants()) {
    const std::string what = absl::StrJoin(variant, " ");
    const FederatedResult whole = RunFederatedJob({.ranks = 2, .rounds = 5, .overrides = variant});
    ExpectSameBits(RunFederatedJob({.ranks = 2,
                                    .rounds = 5,
                                    .overrides = variant,
                                    .restart_after = 2,
                                    .restart_ranks = 3}),
                   whole, what);
  }
}

TEST(FederatedEquality, MasksChangeNothingWhoeverDropsOut) {
  for (const char* dropout : {"0", "0.1", "0.33"}) {
    const Overrides plain = {absl::StrCat("federated.dropout=", dropout),
                             "federated.num_clients=48", "federated.partition=iid"};
    const FederatedResult masked = RunFederatedJob(
        {.ranks = 2,
         .overrides = Joined(plain, {"federated.secure_aggregation.enabled=true",
                                     "federated.secure_aggregation.threshold=25"})});
    for (const RoundMetrics& round : masked.rounds) EXPECT_GT(round.grad_norm, 0) << "a lost round";
    ExpectSameBits(masked, RunFederatedJob({.ranks = 2, .overrides = plain}), dropout);
  }
}

TEST(FederatedEquality, ARoundWithoutEnoughSharesChangesNothing) {
  const FederatedResult lost = RunFederatedJob(
      {.rounds = 2,
       .overrides = {"federated.dropout=0.9", "federated.secure_aggregation.enabled=true"}});
  const FederatedResult none =
      RunFederatedJob({.rounds = 1, .overrides = {"federated.server.learning_rate=0"}});
  EXPECT_EQ(lost.weights, none.weights);
}

TEST(FederatedEquality, StacksAreTheirClientsOneByOne) {
  const Overrides options = {"optimizer.momentum=0.9", "federated.server.learning_rate=0.7"};
  const FederatedResult alone = RunFederatedJob({.overrides = options});
  const FederatedResult stacked =
      RunFederatedJob({.overrides = Joined(options, {"federated.stacked_clients=5"})});
  EXPECT_LT(LargestDifference(stacked.weights, alone.weights), 1e-10);
  EXPECT_NEAR(stacked.rounds[0].client_norm, alone.rounds[0].client_norm, 1e-10);
  // A stack knows the mean loss of its clients.
  EXPECT_NEAR(stacked.rounds[0].loss, alone.rounds[0].loss, 0.3 * alone.rounds[0].loss);
}

TEST(FederatedEquality, StacksOfConvolutionsToo) {
  const Overrides options = {"model.config.num_hidden_layers=2", "model.config.num_channels=3"};
  const FederatedResult alone = RunFederatedJob({.overrides = options});
  const FederatedResult stacked =
      RunFederatedJob({.overrides = Joined(options, {"federated.stacked_clients=5"})});
  EXPECT_LT(LargestDifference(stacked.weights, alone.weights), 1e-10);
}

TEST(FederatedEquality, AClientMayBeAGroupAtAnyZeroStage) {
  for (const Overrides& variant :
       {Overrides{}, Overrides{"federated.algorithm=scaffold"},
        Overrides{"federated.weighting=equal", "federated.privacy.clip_norm=0.2",
                  "federated.privacy.noise_multiplier=0.5"},
        Overrides{"federated.secure_aggregation.enabled=true", "federated.dropout=0.2"}}) {
    const Overrides two = Joined(variant, {"training.per_device_train_batch_size=2"});
    const FederatedResult one = RunFederatedJob({.ranks = 1, .overrides = variant});
    for (int stage = 0; stage <= 3; ++stage) {
      const FederatedResult got = RunFederatedJob(
          {.ranks = 4,
           .overrides =
               Joined(two, {"federated.group_size=2", absl::StrCat("zero.stage=", stage)})});
      EXPECT_LT(LargestDifference(got.weights, one.weights), 1e-10)
          << "stage " << stage << " " << absl::StrJoin(variant, " ");
    }
  }
}

TEST(FederatedEquality, OneFullStepOfEachClientIsOneCentralStep) {
  const Overrides full = {"training.per_device_train_batch_size=96", "federated.local_steps=1"};
  const FederatedResult clients = RunFederatedJob({.rounds = 4, .overrides = full});
  const FederatedResult central = RunFederatedJob(
      {.rounds = 4,
       .overrides = Joined(full, {"federated.num_clients=1", "federated.partition=iid"})});
  EXPECT_LT(LargestDifference(clients.weights, central.weights), 1e-10);
  EXPECT_NEAR(clients.rounds[3].loss, central.rounds[3].loss, 1e-10);
}

TEST(FederatedEquality, ABufferOfAllWithoutDelaysIsInStep) {
  const Overrides even = {"federated.partition=iid", "federated.weighting=equal"};
  const FederatedResult clock = RunFederatedJob(
      {.overrides = Joined(
           even, {"federated.asynchronous.buffer_size=12", "federated.asynchronous.concurrency=12",
                  "federated.asynchronous.latency_sigma=0", "data.shuffle=false"})});
  const FederatedResult in_step =
      RunFederatedJob({.overrides = Joined(even, {"data.shuffle=false"})});
  EXPECT_EQ(clock.weights, in_step.weights);
  EXPECT_EQ(clock.rounds[2].staleness, 0);
}

TEST(FederatedEquality, PrivacyIsReported) {
  const FederatedResult result =
      RunFederatedJob({.rounds = 5,
                       .overrides = {"federated.weighting=equal", "federated.privacy.clip_norm=0.1",
                                     "federated.privacy.target_epsilon=3"}});
  ASSERT_TRUE(result.rounds[4].epsilon.has_value());
  EXPECT_LE(*result.rounds[4].epsilon, 3.0);
  EXPECT_GT(*result.rounds[4].epsilon, 2.99);
  EXPECT_LT(*result.rounds[0].epsilon, *result.rounds[4].epsilon);
}

TEST(FederatedEquality, ClientsLearn) {
  const FederatedResult result = RunFederatedJob({.rounds = 20});
  EXPECT_LT(result.rounds[19].loss, 0.5 * result.rounds[0].loss);
}

}  // namespace
}  // namespace shoal
