// Objectives over log-probabilities and scores, with and without adapters, on every kind of mesh.
#include <cmath>

#include <gtest/gtest.h>

#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

void ExpectSameMetrics(const TrainingResult& got, const TrainingResult& want,
                       const std::string& what) {
  ASSERT_EQ(got.steps.size(), want.steps.size());
  for (size_t i = 0; i < got.steps.size(); ++i) {
    const auto &a = got.steps[i].objective, &b = want.steps[i].objective;
    ASSERT_EQ(a.size(), b.size()) << what;
    for (size_t j = 0; j < a.size(); ++j) {
      EXPECT_EQ(a[j].first, b[j].first);
      EXPECT_NEAR(a[j].second, b[j].second, 1e-10 * std::max(1.0, std::abs(b[j].second)))
          << what << ": " << a[j].first << " of step " << i + 1;
    }
  }
}

void ExpectSame(const TrainingJob& job, const TrainingResult& one) {
  const std::string what = job.objective + (job.lora ? " with adapters, " : ", ") + Describe(job);
  const TrainingResult got = RunTrainingJob(job);
  ExpectClose(got, one, 1e-10, what);
  ExpectSameMetrics(got, one, what);
}

TEST(ObjectiveEquality, RanksMicroBatchesAndStages) {
  for (const char* objective : {"dpo", "ipo", "simpo", "reward"}) {
    for (bool lora : {false, true}) {
      const TrainingJob base{.sgd = true, .objective = objective, .lora = lora};
      const TrainingResult one = RunTrainingJob(base);
      EXPECT_FALSE(one.steps[0].objective.empty());
      EXPECT_GT(one.steps[0].grad_norm, 1e-4);
      for (auto [ranks, micro_batches] : {std::pair{1, 3}, {2, 1}, {2, 3}, {3, 3}}) {
        for (int stage : {0, 2, 3}) {
          TrainingJob job = base;
          job.ranks = ranks;
          job.micro_batches = micro_batches;
          job.stage = stage;
          ExpectSame(job, one);
        }
      }
    }
  }
}

TEST(ObjectiveEquality, TensorParallel) {
  for (const char* model : {"llama", "gpt2"}) {
    for (const char* objective : {"dpo", "reward", ""}) {
      for (bool lora : {false, true}) {
        const TrainingJob base{.model = model, .sgd = true, .objective = objective, .lora = lora};
        const TrainingResult one = RunTrainingJob(base);
        // GPT-2 has three heads here.
        const int tensor = std::string(model) == "gpt2" ? 3 : 2;
        for (bool sequence_parallel : {false, true}) {
          for (int stage : {0, 3}) {
            TrainingJob job = base;
            job.ranks = 2 * tensor;
            job.tensor = tensor;
            job.sequence_parallel = sequence_parallel;
            job.stage = stage;
            ExpectSame(job, one);
          }
        }
      }
    }
  }
}

TEST(ObjectiveEquality, KeyValueHeadsThatRanksShare) {
  const TrainingJob base{.model = "llama-uneven", .sgd = true, .objective = "dpo", .lora = true};
  const TrainingResult one = RunTrainingJob(base);
  TrainingJob job = base;
  job.ranks = job.tensor = 6;
  ExpectSame(job, one);
}

TEST(ObjectiveEquality, PipelinesAndRecompute) {
  for (const char* objective : {"dpo", "reward"}) {
    for (bool lora : {false, true}) {
      const TrainingJob base{.model = "llama",
                             .layers = 4,
                             .micro_batches = 3,
                             .sgd = true,
                             .objective = objective,
                             .lora = lora};
      const TrainingResult one = RunTrainingJob(base);
      for (const PipelineCase& pipeline : kPipelines) {
        TrainingJob job = base;
        job.ranks = job.pipeline = 2;
        job.schedule = pipeline.schedule;
        job.chunks = pipeline.chunks;
        job.stage = pipeline.highest_stage;
        job.recompute = Recompute::kFull;
        ExpectSame(job, one);
      }
    }
  }
}

// Rows that sequences share are computed once: the same as each sequence by itself.
TEST(ObjectiveEquality, SequencesThatBeginAlike) {
  for (const char* model : {"llama", "gpt2"}) {
    for (const char* objective : {"dpo", "reward", ""}) {
      const TrainingJob base{
          .model = model, .layers = 4, .sgd = true, .objective = objective, .pairs = true};
      const TrainingResult one = RunTrainingJob(base);
      TrainingJob job = base;
      job.lengths = true;
      ExpectSame(job, one);
      job.recompute = Recompute::kFull;
      ExpectSame(job, one);
      for (int stage : {0, 2, 3}) {
        job = base;
        job.lengths = true;
        job.ranks = 2;
        job.stage = stage;
        ExpectSame(job, one);
      }
      // GPT-2 has three heads here.
      for (bool sequence_parallel : {false, true}) {
        job = base;
        job.lengths = true;
        job.ranks = job.tensor = std::string(model) == "gpt2" ? 3 : 2;
        job.sequence_parallel = sequence_parallel;
        ExpectSame(job, one);
      }
      for (const PipelineCase& pipeline : kPipelines) {
        job = base;
        job.lengths = true;
        job.micro_batches = 2;
        job.ranks = job.pipeline = 2;
        job.schedule = pipeline.schedule;
        job.chunks = pipeline.chunks;
        job.stage = pipeline.highest_stage;
        ExpectSame(job, one);
      }
    }
  }
}

TEST(ObjectiveEquality, AdaptersTrainAndTheBaseDoesNot) {
  const TrainingResult trained = RunTrainingJob({.objective = "dpo", .lora = true});
  const TrainingResult untrained = RunTrainingJob({.steps = 0, .objective = "dpo", .lora = true});
  int adapters = 0;
  for (const auto& [name, values] : trained.state) {
    if (!name.starts_with("weights/")) {
      EXPECT_NE(name.find("lora_"), std::string::npos) << name << " has an optimizer's state";
      continue;
    }
    const bool adapter = name.find("lora_") != std::string::npos;
    adapters += adapter;
    if (adapter)
      EXPECT_NE(values, untrained.state.at(name)) << name;
    else
      EXPECT_EQ(values, untrained.state.at(name)) << name;
  }
  EXPECT_EQ(adapters, 2 * 7 * 2);  // A and B of seven matrices of two layers
}

}  // namespace
}  // namespace shoal
