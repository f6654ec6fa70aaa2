// Whole runs by a recipe, from text to checkpoints, exports and samples, on the fake device and on
// the host.
#include <fstream>

#include "tests/fake_device/fake_kernels.h"
#include "tests/fake_device/recipe_run.h"
#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

class FakeRun : public RecipeRun {};

TEST_F(FakeRun, Pretrains) {
  const nlohmann::json recipe = Pretraining();
  const Rows want = Run(recipe, "host", 1, c10::kCPU);
  EXPECT_GE(want.size(), 6u);
  ExpectSameRows(Run(recipe, "one", 1, c10::kPrivateUse1), want, "one rank");
  const auto samples = [&](const char* name) {
    std::ifstream file(folder_ / name / "samples.txt");
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_FALSE(samples("host").empty());
  EXPECT_EQ(samples("one"), samples("host"));
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

// And once a layer and micro-batch for what its experts take, which decides sizes; the routers'
// losses and their figures for the log are read together.
TEST(FakeTraining, LayersOfExpertsWaitOnce) {
  const FakeDeviceKernels kernels;
  std::vector<size_t> waits;
  for (const int steps : {2, 5}) {
    const size_t before = FakeDeviceWaits();
    RunTrainingJob({.model = "mixtral",
                    .dtype = at::kFloat,
                    .device = c10::kPrivateUse1,
                    .layers = 2,
                    .micro_batches = 2,
                    .steps = steps,
                    .router_z_loss = 0.01});
    waits.push_back(FakeDeviceWaits() - before);
  }
  EXPECT_EQ(waits[1] - waits[0], 3 * (2 + 1 + 2 * 2));
}

}  // namespace
}  // namespace shoal
