// Reinforcement learning on a device: the answers, rewards, losses and weights of the host.
#include <fstream>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/fake_device/device_under_training.h"
#include "tests/fake_device/recipe_run.h"

namespace shoal {
namespace {

using Json = nlohmann::json;
using Overrides = std::vector<std::string>;

class RlhfOnDevice : public RecipeRun {
 protected:
  void SetUp() override {
    if (DeviceTypeUnderTest() == c10::kCPU) GTEST_SKIP() << "this machine has no GPU";
  }

  void ExpectAsOnHost(const Json& recipe, const std::vector<std::pair<int, Overrides>>& meshes,
                      const std::string& name, double tolerance = 1e-10) {
    const Rows want = Run(recipe, name + "-host", 1, c10::kCPU);
    ASSERT_GE(want.size(), 4u);
    for (size_t i = 0; i < meshes.size(); ++i) {
      const auto& [ranks, overrides] = meshes[i];
      const Rows got = Run(recipe, absl::StrCat(name, i), ranks, DeviceTypeUnderTest(), overrides);
      ExpectSameRows(got, want, absl::StrCat(name, " on mesh ", i), tolerance);
    }
  }
};

TEST_F(RlhfOnDevice, GroupsOfAnswers) {
  PrepareAnswering();
  const Json recipe = Answering("grpo");
  ExpectAsOnHost(
      recipe,
      {{1, {}},
       {2, {"zero.stage=3"}},
       {2, {"parallelism.tensor_parallel=2"}},
       {2, {"parallelism.pipeline_parallel=2", "training.per_device_train_batch_size=4"}}},
      "grpo");
}

TEST_F(RlhfOnDevice, SeveralPassesOverARollout) {
  PrepareAnswering();
  Json recipe = Answering("grpo");
  recipe["rlhf"]["rollout"]["epochs"] = 2;
  recipe["rlhf"]["rollout"]["temperature"] = 0.8;
  recipe["rlhf"]["loss"] = {{"kind", "gspo"}};
  recipe["checkpoint"]["save_steps"] = 4;
  ExpectAsOnHost(recipe, {{1, {}}, {2, {"zero.stage=2"}}}, "gspo");
}

TEST_F(RlhfOnDevice, ActorAndCritic) {
  PrepareAnswering();
  ExpectAsOnHost(Answering("ppo"),
                 {{1, {}}, {2, {"zero.stage=3"}}, {2, {"parallelism.tensor_parallel=2"}}}, "ppo");
}

TEST_F(RlhfOnDevice, AdaptersAgainstTheModelWithoutThem) {
  PrepareAnswering();
  Json recipe = Answering("grpo");
  recipe["model"]["lora"] = {{"rank", 2}, {"target_modules", {"all-linear"}}};
  ExpectAsOnHost(recipe, {{1, {}}, {2, {"zero.stage=3"}}}, "lora");
}

// Which computes in float32.
TEST_F(RlhfOnDevice, AModelThatRewards) {
  PrepareAnswering();
  std::ofstream pairs(folder_ / "pairs.jsonl");
  for (int i = 0; i < 16; ++i) {
    pairs << Json{{"prompt", absl::StrCat("Section ", i)},
                  {"chosen", " the Work"},
                  {"rejected", " a Derivative"}}
          << "\n";
  }
  pairs.close();
  Json reward = Pretraining();
  reward["task"] = "reward";
  for (const char* section : {"tokenizer", "sample", "eval"}) reward.erase(section);
  reward["model"] = Answering("grpo")["model"];
  reward["data"] = {{"train", {{{"path", (folder_ / "pairs.jsonl").string()}}}},
                    {"seq_length", 32}};
  Run(reward, "reward", 1, c10::kCPU);

  Json recipe = Answering("grpo");
  recipe["rlhf"]["rewards"] = {{{"kind", "model"}, {"path", (folder_ / "reward/export").string()}}};
  ExpectAsOnHost(recipe, {{1, {}}, {2, {"zero.stage=1"}}}, "rewarded", 1e-4);
}

TEST_F(RlhfOnDevice, AnEnvironment) {
  const Json recipe = {
      {"task", "ppo"},
      {"run", {{"name", "cartpole"}, {"seed", 1}}},
      {"model",
       {{"dtype", "float64"},
        {"config",
         {{"model_type", "decision_llama"},
          {"num_actions", 2},
          {"observation_size", 4},
          {"hidden_size", 16},
          {"intermediate_size", 24},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2}}}}},
      {"rlhf",
       {{"environment",
         {{"name", "cartpole"},
          {"num_envs", 4},
          {"steps", 16},
          {"context", 4},
          {"eval_episodes", 3}}},
        {"rollout", {{"epochs", 2}}},
        {"critic", {{"learning_rate", 2e-3}, {"clip", 0}}}}},
      {"training", {{"max_steps", 8}, {"global_batch_size", 8}, {"max_grad_norm", 0.5}}},
      {"optimizer", {{"name", "adamw"}, {"learning_rate", 1e-3}}},
      {"eval", {{"steps", 4}}},
      {"checkpoint", {{"save_steps", 0}, {"export_hf", "never"}}},
      {"logging", {{"steps", 1}}}};
  ExpectAsOnHost(recipe, {{1, {}}, {2, {"zero.stage=3"}}, {2, {"parallelism.tensor_parallel=2"}}},
                 "cartpole");
}

// A run that stops on one kind of device goes on on the other.
TEST_F(RlhfOnDevice, GoesOnElsewhere) {
  PrepareAnswering();
  Json recipe = Answering("ppo");
  recipe["scheduler"] = {{"type", "constant"}};
  const Rows want = Run(recipe, "straight", 1, c10::kCPU);
  for (const bool begins_on_host : {true, false}) {
    const std::string name = begins_on_host ? "to" : "back";
    const c10::DeviceType first = begins_on_host ? c10::kCPU : DeviceTypeUnderTest(),
                          second = begins_on_host ? DeviceTypeUnderTest() : c10::kCPU;
    Run(recipe, name, 2, first, {"zero.stage=2", "training.max_steps=2"});
    const Rows got = Run(recipe, name, 1, second);
    ASSERT_FALSE(got.empty());
    EXPECT_NEAR(got.back()["eval_reward"].get<double>(), want.back()["eval_reward"].get<double>(),
                1e-10);
  }
}

}  // namespace
}  // namespace shoal
