// Whole runs by a recipe on ranks of this process, on the host and on the device under training.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <c10/core/DeviceType.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace shoal {

// In a folder of each test's own.
class RecipeRun : public testing::Test {
 protected:
  using Rows = std::vector<nlohmann::json>;

  ~RecipeRun() override { std::filesystem::remove_all(folder_); }

  // What `recipe` with `overrides`, run into folder_/name, leaves in metrics.jsonl.
  Rows Run(const nlohmann::json& recipe, const std::string& name, int ranks, c10::DeviceType device,
           std::vector<std::string> overrides = {});

  // Losses, norms, rewards, values and counts; `tolerance` is relative to numbers above 1.
  static void ExpectSameRows(const Rows& got, const Rows& want, const std::string& what,
                             double tolerance = 1e-10);

  // Six steps of a small llama over LICENSE, in float64, exported to folder_/name/export.
  static nlohmann::json Pretraining();

  // Puts into folder_ a model to begin with and prompts that it is asked.
  void PrepareAnswering();
  // Four steps of task `task`, grpo or ppo, on short answers to them: two steps a rollout of 16.
  nlohmann::json Answering(const std::string& task) const;

  const std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) / ("recipe_run_" + std::to_string(getpid()));
};

}  // namespace shoal
