// Whole runs by a recipe, from text to checkpoints, exports and samples, on the fake device and on
// the host.
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/recipe.h"
#include "core/status.h"
#include "parallel/comm/local_communicator.h"
#include "tests/fake_device/fake_kernels.h"
#include "tests/trainer/training_job.h"
#include "trainer/train_task.h"

namespace shoal {
namespace {

using Rows = std::vector<nlohmann::json>;

class FakeRun : public testing::Test {
 protected:
  // What `recipe` with `overrides` leaves in metrics.jsonl.
  Rows Run(const nlohmann::json& recipe, const std::string& name, int ranks, c10::DeviceType device,
           std::vector<std::string> overrides = {}) {
    overrides.push_back("run.output_dir=" + (folder_ / name).string());
    const absl::StatusOr<LoadedRecipe> loaded = ParseRecipe(recipe.dump(1), "fake.yaml", overrides);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (!loaded.ok()) return {};
    PosixFileSystem files;
    const size_t before = FakeOperatorCalls();
    std::FILE* quiet = std::fopen("/dev/null", "w");
    const absl::Status status = RunRanks(ranks, [&](Communicator& host) {
      return OnDevice(device, host, [&](Communicator& comm) {
        const Logger log(comm.rank(), ranks, quiet);
        const TaskEnvironment environment{.files = files, .log = log, .version = "test"};
        return Caught([&] { return RunTraining(*loaded, comm, environment); });
      });
    });
    std::fclose(quiet);
    EXPECT_TRUE(status.ok()) << name << ": " << status;
    if (device != c10::kCPU) EXPECT_GT(FakeOperatorCalls() - before, 100) << name;
    Rows rows;
    std::ifstream lines(folder_ / name / "metrics.jsonl");
    for (std::string line; std::getline(lines, line);) rows.push_back(nlohmann::json::parse(line));
    return rows;
  }

  static void ExpectSameRows(const Rows& got, const Rows& want, const std::string& what) {
    ASSERT_EQ(got.size(), want.size()) << what;
    for (size_t i = 0; i < got.size(); ++i) {
      for (const char* key : {"loss", "grad_norm", "eval_loss", "aux_loss"}) {
        ASSERT_EQ(got[i].contains(key), want[i].contains(key)) << what << ": " << got[i];
        if (!got[i].contains(key)) continue;
        const double value = want[i][key].get<double>();
        EXPECT_NEAR(got[i][key].get<double>(), value, 1e-10 * std::max(1.0, std::abs(value)))
            << what << ": " << key << " of " << got[i];
      }
    }
  }

  nlohmann::json Pretraining() const {
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

  const std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) / ("fake_run_" + std::to_string(getpid()));
  ~FakeRun() override { std::filesystem::remove_all(folder_); }
};

TEST_F(FakeRun, Pretrains) {
  const nlohmann::json recipe = Pretraining();
  const Rows want = Run(recipe, "host", 1, c10::kCPU);
  EXPECT_GE(want.size(), 6u);
  ExpectSameRows(Run(recipe, "one", 1, c10::kPrivateUse1), want, "one rank");
  ExpectSameRows(Run(recipe, "zero", 2, c10::kPrivateUse1, {"zero.stage=3"}), want, "ZeRO-3");
  ExpectSameRows(
      Run(recipe, "whole", 4, c10::kPrivateUse1,
          {"parallelism.tensor_parallel=2", "parallelism.pipeline_parallel=2",
           "training.gradient_accumulation_steps=2", "training.activation_checkpointing=full"}),
      want, "tensor and pipeline");
  ExpectSameRows(Run(recipe, "context", 2, c10::kPrivateUse1, {"parallelism.context_parallel=2"}),
                 want, "context");
}

// A run that stops on one kind of device goes on on the other.
TEST_F(FakeRun, GoesOnElsewhere) {
  const nlohmann::json recipe = Pretraining();
  const Rows want = Run(recipe, "host", 1, c10::kCPU);
  const auto [host, fake] = std::pair(c10::kCPU, c10::kPrivateUse1);
  for (const auto& [first, second] : {std::pair(host, fake), {fake, host}}) {
    const std::string name = first == host ? "to" : "back";
    Run(recipe, name, 2, first,
        {"zero.stage=2", "training.max_steps=3", "scheduler.type=constant"});
    const Rows got = Run(recipe, name, 1, second, {"scheduler.type=constant"});
    const Rows straight = Run(recipe, name + "-straight", 1, host, {"scheduler.type=constant"});
    ASSERT_FALSE(got.empty());
    ASSERT_FALSE(straight.empty());
    EXPECT_NEAR(got.back()["eval_loss"].get<double>(), straight.back()["eval_loss"].get<double>(),
                1e-10);
  }
}

TEST_F(FakeRun, PrefersAndFineTunes) {
  Run(Pretraining(), "base", 1, c10::kCPU);
  std::ofstream pairs(folder_ / "pairs.jsonl"), answers(folder_ / "answers.jsonl");
  for (int i = 0; i < 26; ++i) {
    std::string prompt = "You may ";
    for (int j = 0; j < i % 5; ++j) prompt += "use ";
    const std::string chosen = "the Work " + std::to_string(i);
    pairs << nlohmann::json{{"prompt", prompt}, {"chosen", chosen}, {"rejected", "Derivative"}}
          << "\n";
    answers << nlohmann::json{{"prompt", prompt}, {"completion", chosen}} << "\n";
  }
  pairs.close();
  answers.close();
  for (const std::string task : {"sft", "dpo", "reward"}) {
    for (const bool lora : {false, true}) {
      nlohmann::json recipe = Pretraining();
      recipe["task"] = task;
      recipe.erase("tokenizer");
      recipe.erase("sample");
      recipe["model"] = {{"name_or_path", (folder_ / "base/export").string()},
                         {"init", "pretrained"},
                         {"dtype", "float64"}};
      if (lora) recipe["model"]["lora"] = {{"rank", 2}, {"target_modules", {"all-linear"}}};
      const std::string file = task == "sft" ? "answers.jsonl" : "pairs.jsonl";
      recipe["data"] = {{"train", {{{"path", (folder_ / file).string()}}}},
                        {"seq_length", 48},
                        {"holdout", 0.25}};
      recipe["checkpoint"] = {{"export_hf", "never"}};
      const std::string name = task + (lora ? "-lora" : "");
      const Rows want = Run(recipe, name, 1, c10::kCPU);
      ExpectSameRows(Run(recipe, name + "-one", 1, c10::kPrivateUse1), want, name);
      ExpectSameRows(Run(recipe, name + "-two", 2, c10::kPrivateUse1,
                         {"zero.stage=3", "training.gradient_accumulation_steps=2"}),
                     want, name + " on two ranks");
    }
  }
}

// The host waits for the loss and for the norm, and once at the start for what stays on the device.
TEST(FakeTraining, StepsWaitForTheDeviceTwice) {
  const FakeDeviceKernels kernels;
  for (const char* model : {"llama", "gpt2-dropout"}) {
    std::vector<size_t> waits;
    for (const int steps : {2, 5}) {
      const size_t before = FakeDeviceWaits();
      RunTrainingJob({.model = model,
                      .dtype = at::kFloat,
                      .device = c10::kPrivateUse1,
                      .micro_batches = 2,
                      .steps = steps});
      waits.push_back(FakeDeviceWaits() - before);
    }
    EXPECT_EQ(waits[1] - waits[0], 3 * 2) << model;
  }
}

}  // namespace
}  // namespace shoal
