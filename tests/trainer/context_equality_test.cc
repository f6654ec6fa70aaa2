// Ranks that share sequences, by either method and beside every other axis, equal one process.
#include <gtest/gtest.h>

#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

using enum ContextParallel::Method;

constexpr double kTolerance = 1e-11;

void ExpectEqualToOneRank(const TrainingJob& job) {
  ExpectClose(RunTrainingJob(job), OnOneRank(job), kTolerance, Describe(job));
}

bool Divides(const TrainingJob& job) {
  const int heads = job.model.starts_with("gpt2") ? 3 : job.model == "llama-uneven" ? 6 : 4;
  return job.context_method == kRing || heads / job.tensor % job.context == 0;
}

TEST(ContextEquality, EveryStageAndModel) {
  for (const char* model : {"llama", "llama-tied", "llama-uneven", "gpt2"}) {
    for (int context : {2, 3, 4}) {
      for (auto method : {kRing, kUlysses}) {
        for (int stage = 0; stage <= 3; ++stage) {
          TrainingJob job{.model = model,
                          .ranks = context,
                          .context = context,
                          .context_method = method,
                          .stage = stage,
                          .micro_batches = stage % 2 == 0 ? 1 : 3,
                          .steps = 3,
                          .overlap = stage == 3,
                          .seq_length = 24};
          if (Divides(job)) ExpectEqualToOneRank(job);
        }
      }
    }
  }
}

TEST(ContextEquality, DocumentsAndDropout) {
  for (const char* model : {"llama", "gpt2-dropout", "llama-dropout"}) {
    for (int context : {2, 3, 4}) {
      for (auto method : {kRing, kUlysses}) {
        for (bool documents : {true, false}) {
          for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
            if (context == 3 && recompute != Recompute::kFull) continue;
            TrainingJob job{.model = model,
                            .ranks = context,
                            .context = context,
                            .context_method = method,
                            .recompute = recompute,
                            .micro_batches = 3,
                            .steps = 3,
                            .seq_length = 24,
                            .documents = documents};
            if (Divides(job)) ExpectEqualToOneRank(job);
          }
        }
      }
    }
  }
}

TEST(ContextEquality, BesideShardsAndReplicas) {
  for (auto method : {kRing, kUlysses}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (int replicate : {1, 2}) {
        ExpectEqualToOneRank({.ranks = 4 * replicate,
                              .replicate = replicate,
                              .context = 2,
                              .context_method = method,
                              .stage = stage,
                              .micro_batches = 3,
                              .steps = 3,
                              .seq_length = 16,
                              .documents = stage % 2 == 1});
      }
    }
  }
}

// Key heads that ranks of a tensor share or not, and rows between matrices that they share or not.
TEST(ContextEquality, BesideTensorParallel) {
  for (const char* model : {"llama", "llama-uneven", "gpt2-dropout"}) {
    for (auto method : {kRing, kUlysses}) {
      for (int tensor : {2, 3}) {
        for (bool sequence_parallel : {true, false}) {
          const std::string name = model;
          const int heads = name == "llama" ? 4 : name == "gpt2-dropout" ? 3 : 6;
          TrainingJob job{.model = model,
                          .ranks = 2 * tensor,
                          .tensor = tensor,
                          .sequence_parallel = sequence_parallel,
                          .context = 2,
                          .context_method = method,
                          .stage = tensor,
                          .micro_batches = 3,
                          .steps = 3,
                          .sgd = name == "llama-uneven",
                          .seq_length = 24};
          if (heads % tensor == 0 && Divides(job)) ExpectEqualToOneRank(job);
        }
      }
    }
  }
}

// 2 x 2 x 2: tensor, pipeline and context.
TEST(ContextEquality, BesideEveryPipelineSchedule) {
  for (const char* model : {"llama", "llama-tied"}) {
    for (auto method : {kRing, kUlysses}) {
      for (const PipelineCase& c : kPipelines) {
        for (int stage = 0; stage <= c.highest_stage; stage += c.highest_stage) {
          ExpectEqualToOneRank({.model = model,
                                .ranks = 8,
                                .tensor = 2,
                                .sequence_parallel = stage == 0,
                                .context = 2,
                                .context_method = method,
                                .pipeline = 2,
                                .schedule = c.schedule,
                                .chunks = c.chunks,
                                .recompute = stage == 3 ? Recompute::kFull : Recompute::kNone,
                                .layers = 4,
                                .stage = stage,
                                .micro_batches = 3,
                                .steps = 3,
                                .seq_length = 16,
                                .documents = model[5] == '\0'});
        }
      }
    }
  }
}

// Routers count over whole sequences: losses of routers, experts that are full, biases that move.
TEST(ContextEquality, Experts) {
  for (const char* model : {"mixtral", "mixtral-many", "dots1"}) {
    for (auto method : {kRing, kUlysses}) {
      for (double capacity : {0.0, 0.7}) {
        for (int context : {2, 4}) {
          TrainingJob job{.model = model,
                          .ranks = 2 * context,
                          .context = context,
                          .context_method = method,
                          .expert = context == 2 ? 2 : 1,
                          .recompute = capacity > 0 ? Recompute::kFull : Recompute::kNone,
                          .stage = context == 2 ? 3 : 1,
                          .micro_batches = 3,
                          .steps = 3,
                          .router_z_loss = 0.01,
                          .capacity_factor = capacity,
                          .router_bias_rate = model[0] == 'd' ? 0.01 : 0.0,
                          .seq_length = 16,
                          .documents = capacity > 0};
          ExpectEqualToOneRank(job);
          job.expert = 1;
          job.tensor = 2;
          if (Divides(job)) ExpectEqualToOneRank(job);
        }
      }
    }
  }
}

// In bfloat16 a ring adds up in float32 and rounds once: as close to float64 as one rank is.
TEST(ContextEquality, HalfPrecisionLosesNoMore) {
  const auto run = [](at::ScalarType dtype, int context, ContextParallel::Method method) {
    return RunTrainingJob({.dtype = dtype,
                           .ranks = context,
                           .context = context,
                           .context_method = method,
                           .steps = 1,
                           .seq_length = 24});
  };
  const double exact = run(at::kDouble, 1, kRing).steps[0].grad_norm;
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const double one = std::abs(run(dtype, 1, kRing).steps[0].grad_norm / exact - 1);
    const double bound = std::max(2 * one, dtype == at::kFloat ? 1e-6 : 2e-3);
    for (auto method : {kRing, kUlysses})
      EXPECT_NEAR(run(dtype, 4, method).steps[0].grad_norm / exact, 1, bound);
  }
}

}  // namespace
}  // namespace shoal
