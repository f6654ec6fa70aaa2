#include "tests/fake_device/recipe_run.h"

#include <cmath>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "core/recipe.h"
#include "core/status.h"
#include "launch/run_task.h"
#include "parallel/comm/local_communicator.h"
#include "tests/fake_device/device_under_training.h"
#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

bool IsCompared(const std::string& key) {
  for (const char* part : {"loss", "grad_norm", "reward", "value", "kl", "ratio", "accuracy",
                           "update_norm", "epsilon", "clip_norm"}) {
    if (key.find(part) != std::string::npos) return true;
  }
  return key == "clients" || key.ends_with("answer_tokens");
}

}  // namespace

RecipeRun::Rows RecipeRun::Run(const nlohmann::json& recipe, const std::string& name, int ranks,
                               c10::DeviceType device, std::vector<std::string> overrides) {
  overrides.push_back("run.output_dir=" + (folder_ / name).string());
  const absl::StatusOr<LoadedRecipe> loaded = ParseRecipe(recipe.dump(1), "run.yaml", overrides);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  if (!loaded.ok()) return {};
  PosixFileSystem files;
  const size_t before = DeviceCalls();
  std::FILE* quiet = std::fopen("/dev/null", "w");
  const absl::Status status = RunRanks(ranks, [&](Communicator& host) {
    return OnDevice(device, host, [&](Communicator& comm) {
      const Logger log(comm.rank(), ranks, quiet);
      const TaskEnvironment environment{.files = files, .log = log, .version = "test"};
      return RunTask(*loaded, comm, environment);
    });
  });
  std::fclose(quiet);
  EXPECT_TRUE(status.ok()) << name << ": " << status;
  if (device != c10::kCPU) {
    EXPECT_GT(DeviceCalls() - before, 100) << name;
  }
  Rows rows;
  std::ifstream lines(folder_ / name / "metrics.jsonl");
  for (std::string line; std::getline(lines, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

void RecipeRun::ExpectSameRows(const Rows& got, const Rows& want, const std::string& what,
                               double tolerance) {
  ASSERT_EQ(got.size(), want.size()) << what;
  ASSERT_FALSE(want.empty()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    for (const auto& [key, wanted] : want[i].items()) {
      if (!IsCompared(key)) continue;
      ASSERT_TRUE(got[i].contains(key)) << what << ": no " << key << " in " << got[i];
      const double value = wanted.get<double>();
      EXPECT_NEAR(got[i][key].get<double>(), value, tolerance * std::max(1.0, std::abs(value)))
          << what << ": " << key << " of " << got[i];
    }
  }
}

nlohmann::json RecipeRun::Pretraining() {
  return {
      {"run", {{"name", "fake"}, {"seed", 7}}},
      {"model",
       {{"dtype", "float64"},
        {"config",
         {{"model_type", "llama"},
          {"vocab_size", 320},
          {"hidden_size", 16},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"intermediate_size", 24},
          {"max_position_embeddings", 64},
          {"tie_word_embeddings", true}}}}},
      {"tokenizer", {{"train", {{"vocab_size", 320}, {"special_tokens", {"<|endoftext|>"}}}}}},
      {"data",
       {{"train", {{{"path", "LICENSE"}, {"format", "text"}}}},
        {"seq_length", 32},
        {"holdout", 0.1}}},
      {"training", {{"max_steps", 6}, {"global_batch_size", 8}}},
      {"optimizer", {{"name", "adamw"}, {"learning_rate", 3e-3}, {"weight_decay", 0.1}}},
      {"eval", {{"steps", 3}}},
      {"checkpoint", {{"save_steps", 3}, {"export_hf", "final"}}},
      {"logging", {{"steps", 1}}},
      {"sample", {{"prompts", {"The "}}, {"max_new_tokens", 4}}},
  };
}

void RecipeRun::PrepareAnswering() {
  nlohmann::json seed = Pretraining();
  seed["training"]["max_steps"] = 2;
  seed.erase("sample");
  Run(seed, "seed", 1, c10::kCPU);
  std::ofstream lines(folder_ / "prompts.jsonl");
  for (int i = 0; i < 7; ++i) {
    std::string prompt = absl::StrCat("Section ", i, ". the");
    for (int j = 0; j < i % 3; ++j) prompt += " Work";
    lines << nlohmann::json{{"prompt", prompt}, {"answer", i}} << "\n";
  }
}

nlohmann::json RecipeRun::Answering(const std::string& task) const {
  const std::string prompts = (folder_ / "prompts.jsonl").string();
  nlohmann::json rlhf = {{"prompts", prompts},
                         {"eval_prompts", prompts},
                         {"rewards",
                          {{{"kind", "length"}, {"target_tokens", 2}},
                           {{"kind", "regex"}, {"pattern", "e"}, {"weight", 0.3}}}},
                         {"rollout", {{"prompts", 4}, {"group_size", 4}, {"max_new_tokens", 6}}},
                         {"kl", {{"coef", 0.05}}}};
  if (task == "ppo") rlhf["critic"] = {{"learning_rate", 3e-3}};
  return {{"task", task},
          {"run", {{"name", task}, {"seed", 5}}},
          {"model",
           {{"name_or_path", (folder_ / "seed/export").string()},
            {"init", "pretrained"},
            {"dtype", "float64"}}},
          {"rlhf", rlhf},
          {"training", {{"max_steps", 4}, {"global_batch_size", 8}}},
          {"optimizer", {{"name", "adamw"}, {"learning_rate", 1e-3}}},
          {"eval", {{"steps", 2}}},
          {"checkpoint", {{"save_steps", 2}, {"export_hf", "final"}}},
          {"logging", {{"steps", 1}}}};
}

}  // namespace shoal
