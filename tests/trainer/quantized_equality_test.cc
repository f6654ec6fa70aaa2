// Training with weights and gradients that are sent as int8: near the exact run, the same each
// time, and the same whether or not it is sent beside computation.
#include <gtest/gtest.h>

#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

double LargestDifference(const TrainingResult& a, const TrainingResult& b) {
  double most = 0;
  EXPECT_EQ(a.steps.size(), b.steps.size());
  for (size_t i = 0; i < a.steps.size(); ++i)
    most = std::max(most, std::abs(a.steps[i].loss - b.steps[i].loss));
  return most;
}

TEST(QuantizedCommunication, StaysNearTheExactRunOnEveryMesh) {
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (TrainingJob job :
         {TrainingJob{.ranks = 3, .stage = 3},
          {.ranks = 4, .stage = 2, .micro_batches = 3},
          {.model = "llama-tied", .ranks = 4, .tensor = 2, .stage = 3},
          {.ranks = 4, .replicate = 2, .stage = 3},
          {.ranks = 4, .pipeline = 2, .layers = 4, .stage = 3, .micro_batches = 3},
          {.model = "mixtral", .ranks = 4, .expert = 2, .stage = 3}}) {
      job.dtype = dtype;
      job.steps = 8;
      const TrainingResult exact = RunTrainingJob(job);
      job.quantized_weights = job.stage == 3;
      job.quantized_gradients = true;
      const TrainingResult rounded = RunTrainingJob(job);
      const double difference = LargestDifference(rounded, exact);
      EXPECT_LT(difference, 0.05) << Describe(job);
      EXPECT_GT(difference, 1e-6) << Describe(job);
      ExpectSameBits(RunTrainingJob(job), rounded, Describe(job) + " again");
      job.overlap = true;
      ExpectSameBits(RunTrainingJob(job), rounded, Describe(job) + " overlapped");
    }
  }
}

TEST(QuantizedCommunication, OneRankRoundsNothing) {
  TrainingJob job{.dtype = at::kFloat, .ranks = 1, .stage = 3};
  const TrainingResult exact = RunTrainingJob(job);
  job.quantized_weights = job.quantized_gradients = true;
  ExpectSameBits(RunTrainingJob(job), exact, "one rank");
}

TEST(QuantizedCommunication, AGradientThatIsNotFiniteSkipsTheStepOnEveryRank) {
  TrainingJob job{.dtype = at::kFloat,
                  .ranks = 3,
                  .stage = 3,
                  .quantized_weights = true,
                  .quantized_gradients = true,
                  .poison_step = 1};
  const TrainingResult result = RunTrainingJob(job);
  ASSERT_EQ(result.steps.size(), 4u);
  EXPECT_TRUE(result.steps[1].skipped);
  EXPECT_FALSE(result.steps[2].skipped);
}

}  // namespace
}  // namespace shoal
