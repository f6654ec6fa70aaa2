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
  for (const char* optimizer : {"adamw", "sgd", "lion", "adafactor", "muon"})
    EXPECT_EQ(Why({std::string("optimizer.name=") + optimizer}), std::nullopt) << optimizer;
  for (const char* dtype : {"float32", "float16", "float64"})
    EXPECT_EQ(Why({std::string("model.dtype=") + dtype}), std::nullopt) << dtype;
}

TEST(WhyNotOnGpuTest, NamesTheFirst) {
  const struct {
    std::vector<std::string> overrides;
    const char* what;
  } cases[] = {
      {{"optimizer.name=adamw_8bit"}, "optimizer.name adamw_8bit"},
      {{"optimizer.master_weights=split"}, "optimizer.master_weights split"},
      {{"zero.stage=3", "zero.quantized_weights=true"}, "zero.quantized_weights"},
      {{"zero.stage=2", "zero.quantized_gradients=true"}, "zero.quantized_gradients"},
      {{"zero.offload_optimizer=disk"}, "zero.offload_optimizer disk"},
      {{"zero.stage=3", "zero.offload_parameters=disk"}, "zero.offload_parameters disk"},
      {{"training.offload_activations=disk"}, "training.offload_activations disk"},
  };
  for (const auto& [overrides, what] : cases)
    EXPECT_EQ(Why(overrides), std::string(what) + " does not run on a GPU");
}

}  // namespace
}  // namespace shoal
