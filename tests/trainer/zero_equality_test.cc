// One job under every ZeRO stage, number of ranks and way of cutting the batch.
#include <gtest/gtest.h>

#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

TEST(ZeroEquality, StagesAreEqualToTheLastBit) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      for (int ranks = 1; ranks <= 4; ++ranks) {
        for (int micro_batches : {1, 3}) {
          TrainingJob job{
              .model = model, .dtype = dtype, .ranks = ranks, .micro_batches = micro_batches};
          const TrainingResult stage0 = RunTrainingJob(job);
          for (job.stage = 1; job.stage <= 3; ++job.stage)
            ExpectSameBits(RunTrainingJob(job), stage0, Describe(job));
        }
      }
    }
  }
}

TEST(ZeroEquality, RanksAndMicroBatchesDoNotChangeTheResult) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    for (bool sgd : {false, true}) {
      const TrainingResult one = RunTrainingJob({.model = model, .sgd = sgd});
      for (int ranks = 1; ranks <= 4; ++ranks) {
        for (int micro_batches : {1, 3}) {
          for (int stage : {0, 3}) {
            const TrainingJob job{.model = model,
                                  .ranks = ranks,
                                  .stage = stage,
                                  .micro_batches = micro_batches,
                                  .sgd = sgd};
            ExpectClose(RunTrainingJob(job), one, 1e-12, Describe(job));
          }
        }
      }
    }
  }
}

TEST(ZeroEquality, FastModeEqualsDeterministicModeClosely) {
  for (int stage = 0; stage <= 3; ++stage) {
    TrainingJob job{.ranks = 2, .stage = stage, .micro_batches = 3, .deterministic = true};
    const TrainingResult deterministic = RunTrainingJob(job);
    job.deterministic = false;
    ExpectClose(RunTrainingJob(job), deterministic, 1e-12, Describe(job));
  }
}

TEST(ZeroEquality, Float32AgreesWithFloat64) {
  ExpectClose(RunTrainingJob({.dtype = at::kFloat, .ranks = 2, .stage = 3}), RunTrainingJob({}),
              2e-4, "float32");
}

TEST(ZeroEquality, FrozenWeightsStayAndStagesAgree) {
  TrainingJob job{.model = "llama", .ranks = 3, .freeze = {"embed_tokens", "layers\\.1\\..*proj"}};
  const TrainingResult stage0 = RunTrainingJob(job);
  EXPECT_EQ(stage0.state.count("adam_m/model.embed_tokens.weight"), 0u);
  EXPECT_EQ(stage0.state.count("adam_m/model.layers.0.mlp.up_proj.weight"), 1u);
  TrainingJob untrained = job;
  untrained.steps = 0;
  const auto start = RunTrainingJob(untrained).state;
  EXPECT_EQ(stage0.state.at("weights/model.embed_tokens.weight"),
            start.at("weights/model.embed_tokens.weight"));
  EXPECT_NE(stage0.state.at("weights/model.norm.weight"), start.at("weights/model.norm.weight"));
  for (job.stage = 1; job.stage <= 3; ++job.stage)
    ExpectSameBits(RunTrainingJob(job), stage0, Describe(job));
}

TEST(ZeroEquality, ANonFiniteStepIsSkippedOnAllRanksAlike) {
  TrainingJob job{.ranks = 3, .steps = 5, .poison_step = 2};
  const TrainingResult stage0 = RunTrainingJob(job);
  ASSERT_EQ(stage0.steps.size(), 5u);
  EXPECT_TRUE(stage0.steps[2].skipped);
  EXPECT_FALSE(stage0.steps[1].skipped || stage0.steps[3].skipped);
  for (const auto& [name, values] : stage0.state) {
    for (double v : values) EXPECT_TRUE(std::isfinite(v)) << name;
  }
}

TEST(ZeroEquality, BytesSentFollowTheFormula) {
  for (int stage = 0; stage <= 3; ++stage) {
    const TrainingResult result = RunTrainingJob(
        {.model = "llama", .dtype = at::kFloat, .ranks = 2, .stage = stage, .steps = 12});
    int64_t elements = 0;
    for (const auto& [name, values] : result.state)
      elements += name.starts_with("weights/") ? values.size() : 0;
    // Every unit of this model has an even number of elements: no padding on two ranks.
    EXPECT_EQ(result.steps[3].bytes_sent, (stage == 3 ? 3 : 2) * elements * 4 / 2)
        << "stage " << stage;
  }
}

}  // namespace
}  // namespace shoal
