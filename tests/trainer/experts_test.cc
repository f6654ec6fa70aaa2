// Models of experts: every mesh, expert parallelism too, equals one process.
#include <cmath>

#include <gtest/gtest.h>

#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

constexpr double kExpertTolerance = 1e-11;

TrainingJob OneRankOf(const TrainingJob& job) {
  return {.model = job.model,
          .layers = job.layers,
          .steps = job.steps,
          .sgd = job.sgd,
          .rule = job.rule,
          .freeze = job.freeze,
          .router_z_loss = job.router_z_loss,
          .capacity_factor = job.capacity_factor};
}

void ExpectExpertsEqualToOneRank(TrainingJob job) {
  job.steps = 3;
  const TrainingJob alone = OneRankOf(job);
  static std::map<std::string, TrainingResult> results;
  const std::string key = absl::StrCat(Describe(alone), alone.layers, alone.sgd,
                                       alone.router_z_loss, alone.freeze.size(), alone.rule);
  if (!results.contains(key)) results[key] = RunTrainingJob(alone);
  const TrainingResult &want = results[key], got = RunTrainingJob(job);
  ExpectClose(got, want, kExpertTolerance, Describe(job));
  for (size_t step = 0; step < want.steps.size(); ++step) {
    ASSERT_EQ(got.steps[step].objective.size(), want.steps[step].objective.size());
    for (size_t i = 0; i < want.steps[step].objective.size(); ++i) {
      const auto& [name, value] = want.steps[step].objective[i];
      EXPECT_EQ(got.steps[step].objective[i].first, name);
      EXPECT_NEAR(got.steps[step].objective[i].second, value, 1e-11 * (1 + std::abs(value)))
          << Describe(job) << ", " << name;
    }
  }
}

double Figure(const TrainingResult& result, int step, const std::string& name) {
  for (const auto& [key, value] : result.steps[step].objective) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no " << name;
  return NAN;
}

TEST(Experts, AnyMeshOfRanksThatHoldAllOfThem) {
  for (int stage = 0; stage <= 3; ++stage) {
    ExpectExpertsEqualToOneRank({.model = "mixtral",
                                 .ranks = 3,
                                 .stage = stage,
                                 .micro_batches = stage == 1 ? 1 : 3,
                                 .router_z_loss = 0.01});
    for (bool sequence_parallel : {true, false}) {
      ExpectExpertsEqualToOneRank({.model = "mixtral",
                                   .ranks = 4,
                                   .tensor = 2,
                                   .sequence_parallel = sequence_parallel,
                                   .recompute = Recompute::kSelective,
                                   .stage = stage,
                                   .micro_batches = 3,
                                   .sgd = true,
                                   .router_z_loss = 0.01});
    }
  }
  for (const PipelineCase& c : kPipelines) {
    ExpectExpertsEqualToOneRank({.model = "mixtral",
                                 .ranks = 4,
                                 .pipeline = 2,
                                 .schedule = c.schedule,
                                 .chunks = c.chunks,
                                 .layers = 4,
                                 .stage = c.highest_stage,
                                 .micro_batches = 3});
  }
}

TEST(Experts, OverRanks) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (int expert : {2, 4}) {
      for (int micro_batches : {1, 3}) {
        ExpectExpertsEqualToOneRank({.model = "mixtral",
                                     .ranks = 4,
                                     .expert = expert,
                                     .stage = stage,
                                     .micro_batches = micro_batches,
                                     .overlap = stage == 3,
                                     .sgd = micro_batches == 3,
                                     .router_z_loss = 0.01});
      }
    }
    // Two replicas of two pairs; nothing held back for the end.
    ExpectExpertsEqualToOneRank({.model = "mixtral",
                                 .ranks = 4,
                                 .replicate = 2,
                                 .expert = 2,
                                 .recompute = Recompute::kFull,
                                 .stage = stage,
                                 .micro_batches = 3,
                                 .deterministic = false});
  }
}

TEST(Experts, OverRanksBesideTheOtherAxes) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (bool sequence_parallel : {true, false}) {
      ExpectExpertsEqualToOneRank({.model = "mixtral",
                                   .ranks = 4,
                                   .tensor = 2,
                                   .sequence_parallel = sequence_parallel,
                                   .expert = 2,
                                   .stage = stage,
                                   .micro_batches = 3,
                                   .sgd = stage == 2});
    }
  }
  for (const PipelineCase& c : kPipelines) {
    for (int tensor : {1, 2}) {
      ExpectExpertsEqualToOneRank({.model = "mixtral",
                                   .ranks = 4 * tensor,
                                   .tensor = tensor,
                                   .pipeline = 2,
                                   .expert = 2,
                                   .schedule = c.schedule,
                                   .chunks = c.chunks,
                                   .recompute = Recompute::kSelective,
                                   .layers = 4,
                                   .stage = c.highest_stage,
                                   .micro_batches = 3});
    }
  }
}

// A micro-batch of one sequence of seven tokens chooses few of 32 experts; some are never chosen.
TEST(Experts, SomeThatNoTokenChooses) {
  const TrainingResult alone = RunTrainingJob({.model = "mixtral-many", .steps = 3});
  int idle = 0;
  for (const auto& [name, moment] : alone.state) {
    if (!name.starts_with("adam_v/") || name.find(".experts.") == std::string::npos) continue;
    idle += std::all_of(moment.begin(), moment.end(), [](double v) { return v == 0; });
  }
  EXPECT_GT(idle, 0);
  for (int expert : {1, 2, 4}) {
    for (int stage : {0, 2, 3}) {
      ExpectExpertsEqualToOneRank({.model = "mixtral-many",
                                   .ranks = 4,
                                   .expert = expert,
                                   .stage = stage,
                                   .micro_batches = 9});
    }
  }
}

TEST(Experts, ThatAreFullDropTheSameTokensOnEveryMesh) {
  for (double factor : {0.5, 1.0}) {
    const TrainingJob job{.model = "mixtral", .steps = 1, .capacity_factor = factor};
    EXPECT_GT(Figure(RunTrainingJob(job), 0, "dropped_share"), factor == 0.5 ? 0.4 : 0.0);
    for (int expert : {1, 2, 4}) {
      for (int stage : {0, 3}) {
        ExpectExpertsEqualToOneRank({.model = "mixtral",
                                     .ranks = 4,
                                     .expert = expert,
                                     .stage = stage,
                                     .micro_batches = 3,
                                     .router_z_loss = 0.01,
                                     .capacity_factor = factor});
      }
    }
    ExpectExpertsEqualToOneRank({.model = "mixtral",
                                 .ranks = 4,
                                 .tensor = 2,
                                 .expert = 2,
                                 .recompute = Recompute::kFull,
                                 .stage = 2,
                                 .micro_batches = 3,
                                 .capacity_factor = factor});
  }
}

TEST(Experts, FrozenByNameOnWhateverRank) {
  for (int expert : {1, 2, 4}) {
    for (int stage : {0, 3}) {
      ExpectExpertsEqualToOneRank({.model = "mixtral",
                                   .ranks = 4,
                                   .expert = expert,
                                   .stage = stage,
                                   .micro_batches = 3,
                                   .freeze = {"experts\\.3\\.w1", "block_sparse_moe\\.gate"}});
    }
  }
}

// Nothing but an expert's matrices and the head trains.
TEST(Experts, TheNormCountsWhatFewRanksHold) {
  for (int expert : {2, 4}) {
    for (int stage : {0, 1, 3}) {
      ExpectExpertsEqualToOneRank(
          {.model = "mixtral",
           .ranks = 4,
           .expert = expert,
           .stage = stage,
           .micro_batches = 3,
           .freeze = {"embed", "norm", "self_attn", "gate", "experts\\.[02]"}});
    }
  }
}

// Optimizers that see whole matrices.
TEST(Experts, OverRanksUnderEveryOptimizer) {
  for (const char* rule : {"muon", "adafactor", "adamw_8bit", "lion"}) {
    for (int expert : {1, 2, 4}) {
      for (int stage : {0, 2, 3}) {
        ExpectExpertsEqualToOneRank({.model = "mixtral",
                                     .ranks = 4,
                                     .expert = expert,
                                     .stage = stage,
                                     .micro_batches = 3,
                                     .rule = rule});
      }
    }
  }
}

// Stages agree to the last bit, experts over ranks or not, and so does what is computed twice.
TEST(Experts, StagesAndRecomputedLayersGiveTheSameBits) {
  for (int expert : {1, 2}) {
    TrainingJob job{.model = "mixtral", .ranks = 4, .expert = expert, .micro_batches = 3};
    const TrainingResult first = RunTrainingJob(job);
    for (int stage = 1; stage <= 3; ++stage) {
      job.stage = stage;
      job.recompute = stage == 2 ? Recompute::kFull : Recompute::kNone;
      job.overlap = stage == 3;
      ExpectSameBits(RunTrainingJob(job), first, Describe(job));
    }
  }
}

// The load-balancing loss balances.
TEST(Experts, RoutersLearnToSpreadTheTokens) {
  TrainingJob job{.model = "mixtral", .steps = 30};
  const TrainingResult result = RunTrainingJob(job);
  EXPECT_LT(Figure(result, 29, "router_balance_loss"), Figure(result, 0, "router_balance_loss"));
  EXPECT_GT(Figure(result, 0, "expert_load_max"), 1.0);
}

}  // namespace
}  // namespace shoal
