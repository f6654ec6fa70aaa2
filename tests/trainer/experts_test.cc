// Models of experts: every mesh, expert parallelism too, equals one process.
#include <cmath>

#include <gtest/gtest.h>

#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/router_bias.h"

namespace shoal {
namespace {

constexpr double kExpertTolerance = 1e-11;
constexpr char kBias[] = "e_score_correction_bias";

void ExpectExpertsEqualToOneRank(TrainingJob job) {
  job.steps = 3;
  const TrainingResult& want = OnOneRank(job);
  const TrainingResult got = RunTrainingJob(job);
  ExpectClose(got, want, kExpertTolerance, Describe(job));
  // Counts are exact: biases keep their bits.
  for (const auto& [name, values] : want.state) {
    if (!name.ends_with(kBias)) continue;
    EXPECT_EQ(got.state.at(name), values) << Describe(job) << ", " << name;
  }
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

// Routers of sigmoids with biases that move, experts that tokens share, a dense first layer.
TEST(Experts, BiasesMoveAlikeOnAnyMesh) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (int expert : {1, 2, 4}) {
      ExpectExpertsEqualToOneRank({.model = "dots1",
                                   .ranks = 4,
                                   .expert = expert,
                                   .recompute = stage == 1 ? Recompute::kFull : Recompute::kNone,
                                   .layers = 3,
                                   .stage = stage,
                                   .micro_batches = 3,
                                   .overlap = stage == 3,
                                   .sgd = stage == 2,
                                   .router_z_loss = 0.01,
                                   .capacity_factor = expert == 2 ? 1.0 : 0.0,
                                   .router_bias_rate = 0.01});
    }
    for (int expert : {1, 2}) {
      ExpectExpertsEqualToOneRank({.model = "dots1",
                                   .ranks = 4,
                                   .replicate = 2,
                                   .expert = expert,
                                   .layers = 3,
                                   .stage = stage,
                                   .micro_batches = 3,
                                   .deterministic = false,
                                   .router_bias_rate = 0.01});
      for (bool sequence_parallel : {true, false}) {
        ExpectExpertsEqualToOneRank({.model = "dots1",
                                     .ranks = 4,
                                     .tensor = 2,
                                     .sequence_parallel = sequence_parallel,
                                     .expert = expert,
                                     .recompute = Recompute::kSelective,
                                     .layers = 3,
                                     .stage = stage,
                                     .micro_batches = 3,
                                     .router_bias_rate = 0.01});
      }
    }
  }
  for (const PipelineCase& c : kPipelines) {
    for (int tensor : {1, 2}) {
      ExpectExpertsEqualToOneRank({.model = "dots1",
                                   .ranks = 4 * tensor,
                                   .tensor = tensor,
                                   .pipeline = 2,
                                   .expert = 2,
                                   .schedule = c.schedule,
                                   .chunks = c.chunks,
                                   .recompute = Recompute::kSelective,
                                   .layers = 4,
                                   .stage = c.highest_stage,
                                   .micro_batches = 3,
                                   .router_bias_rate = 0.01});
    }
  }
}

TEST(Experts, StagesGiveTheSameBitsWithBiases) {
  TrainingJob job{
      .model = "dots1", .ranks = 4, .layers = 3, .micro_batches = 3, .router_bias_rate = 0.01};
  const TrainingResult first = RunTrainingJob(job);
  for (int stage = 1; stage <= 3; ++stage) {
    job.stage = stage;
    ExpectSameBits(RunTrainingJob(job), first, Describe(job));
  }
}

std::map<std::string, std::vector<double>> BiasesAfter(const TrainingJob& job) {
  std::map<std::string, std::vector<double>> biases;
  for (const auto& [name, values] : RunTrainingJob(job).state) {
    if (name.ends_with(kBias)) biases[name] = values;
  }
  return biases;
}

bool AllZero(const std::map<std::string, std::vector<double>>& biases) {
  return std::all_of(biases.begin(), biases.end(), [](const auto& bias) {
    return std::all_of(bias.second.begin(), bias.second.end(), [](double b) { return b == 0; });
  });
}

TEST(Experts, BiasesOfFrozenModelsAndSkippedStepsStay) {
  const TrainingJob job{
      .model = "dots1", .ranks = 2, .layers = 3, .steps = 2, .router_bias_rate = 0.01};
  const auto moved = BiasesAfter(job);
  EXPECT_EQ(moved.size(), 2u);  // The first layer is dense
  EXPECT_FALSE(AllZero(moved));
  TrainingJob still = job;
  still.router_bias_rate = 0;
  EXPECT_TRUE(AllZero(BiasesAfter(still)));
  still = job;
  still.freeze = {kBias};
  EXPECT_TRUE(AllZero(BiasesAfter(still)));
  still = job;
  still.lora = true;
  EXPECT_TRUE(AllZero(BiasesAfter(still)));
  still = job;
  still.steps = 3;
  still.poison_step = 2;
  EXPECT_EQ(BiasesAfter(still), moved);
}

// Whatever the model computes in, a bias moves by the rate exactly.
TEST(Experts, BiasesAreKeptInFloat32) {
  constexpr double kRate = 0.001;
  for (int stage : {0, 3}) {
    double largest = 0;
    for (const auto& [name, values] : BiasesAfter({.model = "dots1",
                                      .dtype = at::kBFloat16,
                                      .ranks = 2,
                                      .layers = 3,
                                      .stage = stage,
                                      .steps = 9,
                                      .router_bias_rate = kRate})) {
      for (double bias : values) {
        EXPECT_NEAR(bias / kRate, std::round(bias / kRate), 1e-5) << name;
        largest = std::max(largest, std::abs(bias));
      }
    }
    EXPECT_GT(largest, 4 * kRate);
  }
}

TEST(Experts, ABiasMovesAgainstItsExpertsLoad) {
  const absl::Status status = RunRanks(1, [](Communicator& comm) {
    return BuildTrainingJob({.model = "dots1"}, comm, [](const JobParts& parts) -> absl::Status {
      const ModelConfig& config = parts.model.config;
      RoutingTotals routing(config);
      // Choices of eight experts; the mean is 3.
      const Tensor chosen = at::tensor({3.0, 4.0, 2.0, 3.0, 0.0, 9.0, 3.0, 0.0}, at::kDouble);
      const Tensor none = at::zeros({}, at::kDouble);
      routing.Add(/*layer=*/1, {.chosen_E = chosen, .balance = none, .z = none});
      routing.Reduce(parts.mesh);
      MoveRouterBiases(routing, config, 0.5, parts.parameters);
      MoveRouterBiases(routing, config, 0.25, parts.parameters);
      std::map<std::string, std::vector<double>> state;
      CollectState(parts.optimizer, state);
      EXPECT_EQ(state.at(absl::StrCat("weights/model.layers.1.mlp.gate.", kBias)),
                (std::vector<double>{0, -0.75, 0.75, 0, 0.75, -0.75, 0, 0.75}));
      return absl::OkStatus();
    });
  });
  EXPECT_TRUE(status.ok()) << status;
}

// The biases balance, with no help of a loss.
TEST(Experts, BiasesSpreadTheTokens) {
  const auto load = [](double rate) {
    TrainingJob job{.model = "dots1-free", .layers = 3, .steps = 60, .router_bias_rate = rate};
    const TrainingResult result = RunTrainingJob(job);
    double sum = 0;  // The last ten steps'
    for (int step = 50; step < 60; ++step) sum += Figure(result, step, "expert_load_max");
    return sum / 10;
  };
  const double without = load(0), with = load(0.01);
  EXPECT_GT(without, 1.5);
  EXPECT_LT(with - 1, (without - 1) / 2) << "without: " << without;
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
