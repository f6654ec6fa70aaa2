// What keeps a recipe from a GPU, named; what `run.device` says of it is among the bad recipes.
#include "core/device_validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/recipe.h"

namespace shoal {
namespace {

std::optional<std::string> Why(const std::vector<std::string>& overrides) {
  const absl::StatusOr<LoadedRecipe> recipe = ParseRecipe(
      "model: {name_or_path: m, dtype: bfloat16}\n"
      "data: {train: [{path: a.bin, format: tokens}]}\n"
      "training: {max_steps: 2}\n",
      "recipe.yaml", overrides);
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  return recipe.ok() ? WhyNotOnGpu(recipe->proto) : std::nullopt;
}

TEST(WhyNotOnGpuTest, PlainTrainingHasNoReason) {
  EXPECT_EQ(Why({}), std::nullopt);
  EXPECT_EQ(Why({"run.device=cuda", "zero.stage=3", "parallelism.tensor_parallel=2"}),
            std::nullopt);
  for (const char* optimizer : {"adamw", "sgd", "lion", "adafactor", "muon", "adamw_8bit"})
    EXPECT_EQ(Why({std::string("optimizer.name=") + optimizer}), std::nullopt) << optimizer;
  for (const char* dtype : {"float32", "float16", "float64"})
    EXPECT_EQ(Why({std::string("model.dtype=") + dtype}), std::nullopt) << dtype;
  EXPECT_EQ(Why({"optimizer.master_weights=split"}), std::nullopt);
  EXPECT_EQ(Why({"zero.stage=3", "zero.quantized_weights=true", "zero.quantized_gradients=true"}),
            std::nullopt);
  for (const char* place : {"host", "disk"}) {
    EXPECT_EQ(Why({std::string("training.offload_activations=") + place}), std::nullopt) << place;
    EXPECT_EQ(Why({std::string("zero.offload_optimizer=") + place}), std::nullopt) << place;
    EXPECT_EQ(Why({"zero.stage=3", std::string("zero.offload_optimizer=") + place,
                   std::string("zero.offload_parameters=") + place}),
              std::nullopt)
        << place;
  }
}

TEST(WhyNotOnGpuTest, OtherTasksHaveNone) {
  EXPECT_EQ(
      Why({"task=federated", "federated.num_clients=2", "federated.partition=iid",
           "federated.secure_aggregation.enabled=true", "training.gradient_accumulation_steps=1"}),
      std::nullopt);
  for (const char* task : {"task: grpo\nrlhf: {prompts: p.jsonl, rewards: [{kind: arithmetic}]}\n",
                           "task: ppo\nrlhf: {environment: {name: cartpole}}\n"}) {
    const absl::StatusOr<LoadedRecipe> recipe =
        ParseRecipe(std::string(task) + "model: {name_or_path: m}\ntraining: {max_steps: 2}\n",
                    "recipe.yaml", {"run.device=cuda"});
    EXPECT_TRUE(recipe.ok()) << recipe.status();
  }
}

TEST(WhyNotOnGpuTest, NamesTheFirst) {
  const struct {
    std::vector<std::string> overrides;
    const char* what;
  } cases[] = {
      {{"zero.stage=3", "zero.offload_parameters=disk"},
       "zero.offload_parameters without zero.offload_optimizer"},
  };
  for (const auto& [overrides, what] : cases)
    EXPECT_EQ(Why(overrides), std::string(what) + " does not run on a GPU");
}

}  // namespace
}  // namespace shoal
