// Which recipes can be compared, and recorded layouts of one training job that agree.
#include "trainer/parity_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/memory_file_system.h"
#include "core/status.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/parity.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string RecipeText(const std::string& more) {
  return "model: {config: {model_type: llama, hidden_size: 64}}\n"
         "data: {train: [{path: a.bin}], seq_length: 16}\n"
         "training: {max_steps: 5, global_batch_size: 8}\n" +
         more;
}

absl::Status Comparable(const std::vector<std::string>& a, const std::vector<std::string>& b,
                        int ranks_a = 1, int ranks_b = 1, const std::string& more = "") {
  SHOAL_ASSIGN_OR_RETURN(const LoadedRecipe recipe_a, ParseRecipe(RecipeText(""), "a.yaml", a));
  SHOAL_ASSIGN_OR_RETURN(const LoadedRecipe recipe_b, ParseRecipe(RecipeText(more), "b.yaml", b));
  return CheckComparable(recipe_a, ranks_a, recipe_b, ranks_b);
}

TEST(CheckComparableTest, LayoutAndPrecisionMayDiffer) {
  const absl::Status status = Comparable(
      {"run.deterministic=true", "run.output_dir=x"},
      {"zero.stage=3", "parallelism.tensor_parallel=2", "parallelism.pipeline_parallel=2",
       "training.gradient_accumulation_steps=2", "training.activation_checkpointing=full",
       "model.dtype=bfloat16", "comm.transport=mpi", "eval.max_batches=3", "run.name=b"},
      1, 8);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CheckComparableTest, DefaultsAreValues) {
  const absl::Status status = Comparable(
      {}, {"data.shuffle=true", "run.seed=42"}, 1, 1,
      "optimizer: {name: adamw, learning_rate: 5e-5, adam_beta2: 0.999, adam_epsilon: 1e-8}\n"
      "scheduler: {type: linear, warmup_steps: 0}\n");
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CheckComparableTest, WhatIsTrainedMayNot) {
  const auto refused = [](const std::string& override_b) {
    const absl::Status status = Comparable({}, {override_b});
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("\n")));
    return std::string(status.message());
  };
  EXPECT_THAT(refused("optimizer.learning_rate=0.25"),
              StartsWith("optimizer.learning_rate is 5e-05 in A and 0.25 in B: "));
  EXPECT_THAT(refused("run.seed=7"), StartsWith("run.seed is 42 in A and 7 in B: "));
  EXPECT_THAT(refused("model.config.hidden_size=32"),
              StartsWith("model.config.hidden_size is 64 in A and 32 in B: "));
  EXPECT_THAT(refused("model.config.head_dim=8"),
              StartsWith("model.config.head_dim is not given in A and 8 in B: "));
  EXPECT_THAT(refused("data.train.0.path=b.bin"),
              StartsWith("data.train.0.path is a.bin in A and b.bin in B: "));
  EXPECT_THAT(refused("data.seq_length=8"), StartsWith("data.seq_length is 16 in A and 8 in B: "));
  EXPECT_THAT(refused("scheduler.type=cosine"),
              StartsWith("scheduler.type is linear in A and cosine in B: "));
  EXPECT_THAT(refused("training.max_grad_norm=0"), StartsWith("training.max_grad_norm is 1"));
  EXPECT_THAT(refused("training.global_batch_size=16"),
              StartsWith("training.global_batch_size is 8 in A and 16 in B: "));
}

// Layouts of one job, recorded.
class RecordedJobsTest : public ::testing::Test {
 protected:
  void Record(const std::string& folder, const TrainingJob& job) {
    const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
      return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
        auto hook =
            std::make_unique<RecordHook>(folder, RecordHook::Parts{.files = files_,
                                                                   .mesh = parts.mesh,
                                                                   .model = parts.model,
                                                                   .parameters = parts.parameters,
                                                                   .optimizer = parts.optimizer});
        SHOAL_RETURN_IF_ERROR(hook->RecordStart(0));
        parts.trainer.AddHook(std::move(hook));
        return parts.trainer.Run();
      });
    });
    ASSERT_TRUE(status.ok()) << status;
  }

  Verdict JudgeJobs(const TrainingJob& a, const TrainingJob& b, double tolerance) {
    Record("/a", a);
    Record("/b", b);
    std::vector<StepComparison> steps;
    const std::vector<int64_t> recorded = RecordedSteps(files_, "/a").value();
    for (const int64_t step : recorded)
      steps.push_back(CompareStep(files_, "/a", "/b", step).value());
    EXPECT_EQ(steps.size(), 4u);
    EXPECT_TRUE(steps.front().is_start);
    return Judge(steps, tolerance);
  }

  MemoryFileSystem files_;
};

TEST_F(RecordedJobsTest, MeshesAgree) {
  for (const char* model : {"llama-tied", "llama"}) {
    const Verdict verdict = JudgeJobs({.model = model, .steps = 3},
                                      {.model = model,
                                       .ranks = 8,
                                       .tensor = 2,
                                       .pipeline = 2,
                                       .stage = 3,
                                       .micro_batches = 3,
                                       .steps = 3},
                                      1e-10);
    EXPECT_TRUE(verdict.within) << model << ": " << verdict.text;
    EXPECT_THAT(verdict.text, StartsWith("equal within 1e-10 over 3 steps")) << model;
  }
}

TEST_F(RecordedJobsTest, StagesAreEqualToTheLastBit) {
  const TrainingJob job{.dtype = at::kFloat, .ranks = 4, .replicate = 2, .steps = 3};
  TrainingJob other = job;
  other.stage = 3;
  EXPECT_EQ(JudgeJobs(job, other, 0).text, "equal to the last bit over 3 steps");
}

TEST_F(RecordedJobsTest, GradientsAreThoseBeforeClipping) {
  const TrainingJob job{.steps = 3, .max_grad_norm = 0.5, .sgd = true};
  TrainingJob other = job;
  other.max_grad_norm = 0.1;
  EXPECT_THAT(JudgeJobs(job, other, 1e-10).text, StartsWith("step 1: weights of "));
}

}  // namespace
}  // namespace shoal
