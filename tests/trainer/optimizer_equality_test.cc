// Every optimizer, with groups and a running mean, on every mesh equals one process; a run that is
// cut and goes on elsewhere equals one that is not.
#include <gtest/gtest.h>

#include <mutex>

#include "checkpoint/checkpoint.h"
#include "core/memory_file_system.h"
#include "core/status.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/state_pieces.h"
#include "trainer/update_rules.h"
#include "trainer/weights_setup.h"

namespace shoal {
namespace {

constexpr double kTolerance = 1e-11;
constexpr const char* kRules[] = {"adamw", "sgd", "lion", "adafactor", "muon", "adamw_8bit"};

// GPT-2's keys have biases, whose gradient is zero but for rounding: AdamW's epsilon hides it, but
// the sign of what rounding leaves (Lion) and its direction (Adafactor) are anyone's.
bool ReadsRounding(const std::string& rule) { return rule == "lion" || rule == "adafactor"; }

TrainingJob WithAll(TrainingJob job, const std::string& rule) {
  job.rule = rule;
  job.groups = true;
  job.ema_decay = 0.8;
  job.steps = 3;
  return job;
}

void ExpectAsOneProcess(const TrainingJob& job) {
  ExpectClose(RunTrainingJob(job), OnOneRank(job), kTolerance, Describe(job));
}

TEST(OptimizerEquality, Shards) {
  for (const char* rule : kRules) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (int ranks : {1, 2, 3, 4}) {
        const char* model = ranks == 3 && !ReadsRounding(rule) ? "gpt2" : "llama";
        ExpectAsOneProcess(
            WithAll({.model = model, .ranks = ranks, .stage = stage, .micro_batches = 3}, rule));
      }
      ExpectAsOneProcess(WithAll({.ranks = 4, .replicate = 2, .stage = stage}, rule));
    }
  }
}

TEST(OptimizerEquality, StagesGiveTheSameBits) {
  for (const char* rule : {"lion", "adamw_8bit"}) {
    for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      TrainingJob job = WithAll({.dtype = dtype, .ranks = 3, .stage = 0}, rule);
      const TrainingResult stage0 = RunTrainingJob(job);
      for (job.stage = 1; job.stage <= 3; ++job.stage)
        ExpectSameBits(RunTrainingJob(job), stage0, Describe(job));
    }
  }
}

TEST(OptimizerEquality, TensorParallel) {
  for (const char* rule : kRules) {
    for (const char* model : {"llama-tied", "llama-uneven", "gpt2"}) {
      const bool gpt2 = std::string(model) == "gpt2";
      if (gpt2 && ReadsRounding(rule)) continue;
      const int tensor = gpt2 || std::string(model) == "llama-uneven" ? 3 : 2;
      for (int stage : {0, 1, 3}) {
        for (bool sequence_parallel : {true, false}) {
          ExpectAsOneProcess(WithAll({.model = model,
                                      .ranks = 2 * tensor,
                                      .tensor = tensor,
                                      .sequence_parallel = sequence_parallel,
                                      .stage = stage},
                                     rule));
        }
      }
    }
  }
}

TEST(OptimizerEquality, PipelineAndThreeAxes) {
  for (const char* rule : kRules) {
    for (const char* model : {"llama", "llama-tied"}) {
      for (const PipelineCase& c : kPipelines) {
        for (int stage = 0; stage <= c.highest_stage; stage += c.highest_stage) {
          const TrainingJob job{.model = model,
                                .ranks = 2,
                                .pipeline = 2,
                                .schedule = c.schedule,
                                .chunks = c.chunks,
                                .layers = 4,
                                .stage = stage,
                                .micro_batches = 3};
          ExpectAsOneProcess(WithAll(job, rule));
          if (c.schedule != ScheduleKind::k1F1B) continue;
          TrainingJob axes = job;
          axes.ranks = 8;
          axes.tensor = 2;
          ExpectAsOneProcess(WithAll(axes, rule));
        }
      }
    }
  }
}

// Two steps on one mesh, saved, then one more on another.
TrainingResult TrainOver(const TrainingJob& from, const TrainingJob& to) {
  MemoryFileSystem files;
  absl::Status status = RunRanks(from.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(from, comm, [&](JobParts parts) -> absl::Status {
      for (int step = 0; step < 2; ++step) SHOAL_RETURN_IF_ERROR(parts.trainer.Step().status());
      TrainerState trainer;
      trainer.set_step(2);
      return SaveCheckpoint(files, comm, "checkpoints", trainer,
                            ToStatePieces(parts.optimizer.PiecesToSave()));
    });
  });
  EXPECT_TRUE(status.ok()) << Describe(from) << ": " << status;
  TrainingResult result;
  std::mutex mutex;
  status = RunRanks(to.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(to, comm, [&](JobParts parts) -> absl::Status {
      SHOAL_RETURN_IF_ERROR(LoadCheckpoint(files, comm, "checkpoints/step-2",
                                           ToStatePieces(parts.optimizer.PiecesToLoad()))
                                .status());
      parts.parameters.SyncFromMaster();
      parts.trainer.Resume({.step = 2, .updates = 2});
      SHOAL_ASSIGN_OR_RETURN(const StepMetrics last, parts.trainer.Step());
      const std::lock_guard lock(mutex);
      if (comm.rank() == 0) result.steps = {last};
      CollectState(parts.optimizer, result.state);
      return absl::OkStatus();
    });
  });
  EXPECT_TRUE(status.ok()) << Describe(to) << ": " << status;
  return result;
}

TEST(OptimizerEquality, GoesOnOnAnyMesh) {
  for (const char* rule : kRules) {
    for (const char* model : {"llama-tied", "llama-uneven"}) {
      const std::vector<TrainingJob> meshes = {
          {.model = model},
          {.model = model, .ranks = 3, .stage = 3},
          {.model = model, .ranks = 4, .replicate = 2, .stage = 0},
          {.model = model, .ranks = 4, .tensor = 2, .stage = 1},
          {.model = model, .ranks = 4, .tensor = 2, .pipeline = 2, .stage = 2, .micro_batches = 2},
      };
      for (size_t i = 0; i < meshes.size(); ++i) {
        const TrainingJob from = WithAll(meshes[i], rule);
        const TrainingJob to = WithAll(meshes[(i + 2) % meshes.size()], rule);
        TrainingResult whole = OnOneRank(from);
        whole.steps = {whole.steps.back()};
        ExpectClose(TrainOver(from, to), whole, kTolerance, Describe(from) + " -> " + Describe(to));
      }
    }
  }
}

TEST(OptimizerEquality, CutRunHasTheSameBits) {
  for (const char* rule : kRules) {
    const TrainingJob job = WithAll({.ranks = 3, .stage = 2}, rule);
    TrainingResult whole = RunTrainingJob(job);
    whole.steps = {whole.steps.back()};
    ExpectSameBits(TrainOver(job, job), whole, Describe(job));
  }
}

// With 16 of 32 bits of the master weights held beside the rounded ones: the same bits everywhere.
TEST(SplitMasters, EveryRuleAndStage) {
  for (const char* rule : kRules) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (int micro_batches : {1, 3}) {
        TrainingJob job = WithAll(
            {.dtype = at::kBFloat16, .ranks = 3, .stage = stage, .micro_batches = micro_batches},
            rule);
        const TrainingResult whole = RunTrainingJob(job);
        job.split_master = true;
        ExpectSameBits(RunTrainingJob(job), whole, Describe(job) + " split");
      }
    }
  }
}

TEST(SplitMasters, EveryAxis) {
  for (const char* rule : kRules) {
    for (TrainingJob job : {TrainingJob{.ranks = 4, .tensor = 2, .stage = 3},
                            {.model = "llama-tied", .ranks = 4, .tensor = 2, .stage = 0},
                            {.ranks = 4, .replicate = 2, .stage = 2, .micro_batches = 3},
                            {.model = "llama-tied",
                            .ranks = 4,
                            .pipeline = 2,
                            .layers = 4,
                            .stage = 1,
                            .micro_batches = 3}}) {
      job = WithAll(job, rule);
      job.dtype = at::kBFloat16;
      const TrainingResult whole = RunTrainingJob(job);
      job.split_master = true;
      ExpectSameBits(RunTrainingJob(job), whole, Describe(job) + " split");
    }
  }
}

TEST(SplitMasters, CheckpointsGoBothWays) {
  for (const char* rule : kRules) {
    for (const bool from_split : {false, true}) {
      TrainingJob from = WithAll({.dtype = at::kBFloat16, .ranks = 3, .stage = 2}, rule);
      TrainingJob to = WithAll({.dtype = at::kBFloat16, .ranks = 3, .stage = 3}, rule);
      TrainingResult whole = RunTrainingJob(from);
      whole.steps = {whole.steps.back()};
      from.split_master = from_split;
      to.split_master = !from_split;
      ExpectSameBits(TrainOver(from, to), whole, Describe(from));
    }
  }
}

TEST(Ema, IsTheMeanOfTheWeightsAndIsExchangedWithThem) {
  std::vector<TrainingJob> jobs;
  for (int stage : {0, 1, 3}) jobs.push_back({.ranks = 2, .stage = stage});
  jobs.push_back({.dtype = at::kBFloat16, .ranks = 2, .stage = 0, .split_master = true});
  for (TrainingJob job : jobs) {
    job = WithAll(job, "adamw");
    const double tolerance = job.split_master ? 1e-6 : 1e-15;
    const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
      return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
        using State = std::map<std::string, std::vector<double>>;
        const auto collect = [&] {
          State state;
          CollectState(parts.optimizer, state);
          return state;
        };
        // This rank's share of each weight; zeros elsewhere.
        const std::string prefix = "weights/";
        State means;
        for (const auto& [name, values] : collect()) {
          if (name.starts_with(prefix)) means["ema/" + name.substr(prefix.size())] = values;
        }
        EXPECT_GE(means.size(), 5u);
        State state = collect();
        for (const auto& [name, mean] : means) EXPECT_EQ(state.at(name), mean) << name;
        for (int step = 0; step < 3; ++step) {
          SHOAL_RETURN_IF_ERROR(parts.trainer.Step().status());
          state = collect();
          for (auto& [name, mean] : means) {
            const std::vector<double>& weights = state.at(prefix + name.substr(4));
            for (size_t i = 0; i < mean.size(); ++i) {
              mean[i] = 0.8 * mean[i] + 0.2 * weights[i];
              EXPECT_NEAR(state.at(name)[i], mean[i], tolerance) << name;
            }
          }
        }
        parts.optimizer.SwapEma();
        const State swapped = collect();
        for (const auto& [name, mean] : means) {
          EXPECT_EQ(swapped.at(prefix + name.substr(4)), state.at(name));
          EXPECT_EQ(swapped.at(name), state.at(prefix + name.substr(4)));
        }
        parts.optimizer.SwapEma();
        EXPECT_EQ(collect(), state);
        return absl::OkStatus();
      });
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(OptimizerGroups, NeedAWeightOfTheirOwn) {
  const auto error = [](const std::vector<std::string>& patterns) {
    const absl::Status status = RunRanks(1, [&](Communicator& comm) {
      return BuildTrainingJob({.steps = 1}, comm, [&](JobParts parts) -> absl::Status {
        LoadedRecipe recipe;
        for (const std::string& pattern : patterns)
          recipe.proto.mutable_optimizer()->add_groups()->set_pattern(pattern);
        SHOAL_ASSIGN_OR_RETURN(std::vector<BlockParameters> blocks,
                               DescribeParameters(parts.model, {"layers.0"}));
        return ApplyGroups(recipe, blocks);
      });
    });
    return std::string(status.message());
  };
  EXPECT_EQ(error({"mlp", "self_attn"}), "");
  EXPECT_NE(error({"model.norms.weight"})
                .find("\"model.norms.weight\" matches no weight that is trained, did you mean "
                      "\"model.norm.weight\"?"),
            std::string::npos)
      << error({"model.norms.weight"});
  EXPECT_NE(error({"layers.0.mlp"}).find("matches no weight that is trained"), std::string::npos);
  EXPECT_NE(error({"mlp", "up_proj"}).find("matches only weights of the groups before it"),
            std::string::npos);
  EXPECT_NE(error({"("}).find("not a regular expression"), std::string::npos);
}

}  // namespace
}  // namespace shoal
