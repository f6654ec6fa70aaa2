// Federated training on a device: the rounds, weights and states of the host.
#include <cmath>
#include <fstream>

#include <gtest/gtest.h>

#include "absl/strings/str_join.h"
#include "tests/fake_device/device_under_training.h"
#include "tests/fake_device/recipe_run.h"
#include "tests/trainer/federated/federated_job.h"

namespace shoal {
namespace {

using Overrides = std::vector<std::string>;

constexpr double kTolerance = 1e-10;

void ExpectAsOnHost(FederatedJob job, const FederatedResult& want) {
  job.device = DeviceTypeUnderTest();
  const std::string what =
      absl::StrCat(absl::StrJoin(job.overrides, " "), " on ", job.ranks, " ranks");
  const size_t before = DeviceCalls();
  const FederatedResult got = RunFederatedJob(job);
  EXPECT_GT(DeviceCalls() - before, 100) << what;
  ASSERT_FALSE(want.weights.empty()) << what;
  EXPECT_LT(LargestDifference(got.weights, want.weights), kTolerance) << what;
  EXPECT_LT(LargestDifference(got.states, want.states), kTolerance) << what;
  ASSERT_EQ(got.rounds.size(), want.rounds.size()) << what;
  for (size_t i = 0; i < want.rounds.size(); ++i) {
    const RoundMetrics &ours = got.rounds[i], &theirs = want.rounds[i];
    EXPECT_NEAR(ours.loss, theirs.loss, kTolerance) << what << ", round " << i + 1;
    EXPECT_NEAR(ours.grad_norm, theirs.grad_norm, kTolerance) << what << ", round " << i + 1;
    EXPECT_NEAR(ours.client_norm, theirs.client_norm, kTolerance) << what << ", round " << i + 1;
    EXPECT_EQ(ours.clients, theirs.clients) << what << ", round " << i + 1;
    EXPECT_EQ(ours.dropped, theirs.dropped) << what << ", round " << i + 1;
    EXPECT_EQ(ours.epsilon, theirs.epsilon) << what << ", round " << i + 1;
  }
}

class FederatedOnDevice : public RecipeRun {
 protected:
  void SetUp() override {
    if (DeviceTypeUnderTest() == c10::kCPU) GTEST_SKIP() << "this machine has no GPU";
  }
};

TEST_F(FederatedOnDevice, EveryWayOfAveraging) {
  for (const Overrides& variant : FederatedVariants()) {
    const FederatedResult want = RunFederatedJob({.overrides = variant});
    for (const int ranks : {1, 3}) ExpectAsOnHost({.ranks = ranks, .overrides = variant}, want);
  }
}

TEST_F(FederatedOnDevice, AClientMayBeAGroupAtAnyZeroStage) {
  for (const Overrides& variant :
       {Overrides{"federated.algorithm=scaffold"},
        Overrides{"federated.algorithm=fedprox", "federated.proximal_mu=0.1",
                  "federated.secure_aggregation.enabled=true"},
        Overrides{"federated.keep_optimizer_state=true", "optimizer.name=adamw",
                  "optimizer.learning_rate=0.01", "federated.aggregation=median"}}) {
    const FederatedResult want = RunFederatedJob({.overrides = variant});
    for (int stage = 0; stage <= 3; ++stage) {
      FederatedJob job{.ranks = 4, .overrides = variant};
      for (const std::string& more :
           {std::string("training.per_device_train_batch_size=2"),
            std::string("federated.group_size=2"), absl::StrCat("zero.stage=", stage)})
        job.overrides.push_back(more);
      ExpectAsOnHost(job, want);
    }
  }
}

TEST_F(FederatedOnDevice, StacksOfConvolutions) {
  const FederatedJob job{.overrides = {"model.config.num_hidden_layers=2",
                                       "model.config.num_channels=3",
                                       "federated.stacked_clients=5"}};
  ExpectAsOnHost(job, RunFederatedJob(job));
}

TEST_F(FederatedOnDevice, ADivergedClientIsLeftOut) {
  FederatedJob job{.overrides = {"optimizer.learning_rate=1e200", "federated.clients_per_round=4",
                                 "training.max_skipped_steps=2"}};
  const FederatedResult want = RunFederatedJob(job);
  EXPECT_GT(want.rounds[0].dropped, 0);
  ExpectAsOnHost(job, want);
}

// What is saved on one kind of device goes on on the other, on other ranks.
TEST_F(FederatedOnDevice, GoesOnElsewhere) {
  for (const Overrides& variant : FederatedVariants()) {
    const FederatedResult want = RunFederatedJob({.rounds = 4, .overrides = variant});
    for (const bool begins_on_host : {true, false}) {
      const FederatedResult got =
          RunFederatedJob({.ranks = 2,
                           .rounds = 4,
                           .overrides = variant,
                           .restart_after = 2,
                           .restart_ranks = 3,
                           .device = begins_on_host ? c10::kCPU : DeviceTypeUnderTest(),
                           .restart_device = begins_on_host ? DeviceTypeUnderTest() : c10::kCPU});
      EXPECT_LT(LargestDifference(got.weights, want.weights), kTolerance)
          << absl::StrJoin(variant, " ");
    }
  }
}

// From text to held-out losses, checkpoints and export.
TEST_F(FederatedOnDevice, LanguageModels) {
  nlohmann::json recipe = Pretraining();
  recipe["task"] = "federated";
  recipe["training"]["max_steps"] = 3;
  recipe["training"]["gradient_accumulation_steps"] = 1;
  recipe["federated"] = {{"partition", "iid"},
                         {"num_clients", 4},
                         {"local_steps", 2},
                         {"keep_optimizer_state", true},
                         {"server", {{"momentum", 0.9}, {"nesterov", true}}}};
  const Rows want = Run(recipe, "host", 1, c10::kCPU);
  EXPECT_GE(want.size(), 3u);
  ExpectSameRows(Run(recipe, "one", 1, DeviceTypeUnderTest()), want, "one rank");
  ExpectSameRows(
      Run(recipe, "four", 4, DeviceTypeUnderTest(), {"federated.group_size=2", "zero.stage=3"}),
      want, "groups of two");
}

TEST_F(FederatedOnDevice, Images) {
  const std::string images = (folder_ / "images.csv").string();
  std::filesystem::create_directories(folder_);
  std::ofstream csv(images);
  csv << "p0,p1,p2,p3,class\n";
  for (int i = 0; i < 60; ++i) {
    for (int p = 0; p < 4; ++p) csv << (p == i % 3 ? 12 : 2) + (i * 7 + p * 3) % 5 << ",";
    csv << i % 3 << "\n";
  }
  csv.close();
  const nlohmann::json recipe = {
      {"task", "federated"},
      {"run", {{"name", "images"}, {"seed", 3}}},
      {"model",
       {{"dtype", "float64"},
        {"config",
         {{"model_type", "image_classifier"},
          {"num_labels", 3},
          {"num_hidden_layers", 0},
          {"hidden_size", 8},
          {"image_size", 2},
          {"max_pixel", 16}}}}},
      {"data", {{"train", {{{"path", images}, {"format", "csv"}}}}, {"holdout", 0.2}}},
      {"training", {{"max_steps", 3}, {"per_device_train_batch_size", 4}, {"max_grad_norm", 0}}},
      {"optimizer", {{"name", "sgd"}, {"learning_rate", 0.5}}},
      {"federated", {{"num_clients", 5}, {"partition", "iid"}, {"stacked_clients", 2}}},
      {"eval", {{"steps", 1}}},
      {"checkpoint", {{"save_steps", 2}, {"export_hf", "never"}}},
      {"logging", {{"steps", 1}}}};
  const Rows want = Run(recipe, "images-host", 1, c10::kCPU);
  EXPECT_TRUE(want.back().contains("eval_accuracy")) << want.back();
  ExpectSameRows(Run(recipe, "images-device", 2, DeviceTypeUnderTest()), want, "images");
}

}  // namespace
}  // namespace shoal
