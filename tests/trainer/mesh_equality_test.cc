// The equivalence lattice: one job on every mesh, schedule and option equals one process.
#include <gtest/gtest.h>

#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

constexpr double kTolerance = 1e-11;

void ExpectEqualToOneProcess(TrainingJob job) {
  job.steps = 3;
  ExpectClose(RunTrainingJob(job), OnOneRank(job), kTolerance, Describe(job));
}

TEST(MeshEquality, TensorParallel) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    for (bool sequence_parallel : {true, false}) {
      for (int tensor : {2, 3, 4}) {
        const int heads = std::string(model) == "gpt2" ? 3 : 4;
        if (heads % tensor != 0) continue;
        for (int stage : {0, 3}) {
          // A micro-batch's 7-token rows divide over the ranks.
          const int data_ranks = tensor == 4 ? 1 : 2;
          ExpectEqualToOneProcess({.model = model,
                                   .ranks = data_ranks * tensor,
                                   .tensor = tensor,
                                   .sequence_parallel = sequence_parallel,
                                   .stage = stage,
                                   .micro_batches = 3});
        }
      }
    }
  }
}

TEST(MeshEquality, KeyValueHeadsThatRanksShare) {
  for (int tensor : {2, 3, 6}) {
    for (int stage : {0, 2}) {
      for (bool sequence_parallel : {true, false}) {
        ExpectEqualToOneProcess({.model = "llama-uneven",
                                 .ranks = tensor,
                                 .tensor = tensor,
                                 .sequence_parallel = sequence_parallel,
                                 .stage = stage,
                                 .sgd = true});
      }
    }
  }
}

TEST(MeshEquality, HybridSharding) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (int micro_batches : {1, 3}) {
      ExpectEqualToOneProcess(
          {.ranks = 4, .replicate = 2, .stage = stage, .micro_batches = micro_batches});
    }
  }
}

TEST(MeshEquality, PipelineParallel) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    for (const PipelineCase& c : kPipelines) {
      for (int pipeline : {2, 3}) {
        for (int micro_batches : {pipeline, 2 * pipeline, pipeline + 1}) {
          if (36 % micro_batches != 0) continue;
          for (int stage = 0; stage <= c.highest_stage; stage += c.highest_stage) {
            ExpectEqualToOneProcess({.model = model,
                                     .ranks = pipeline,
                                     .pipeline = pipeline,
                                     .schedule = c.schedule,
                                     .chunks = c.chunks,
                                     .layers = 4,
                                     .stage = stage,
                                     .micro_batches = micro_batches});
          }
        }
      }
    }
  }
}

// What is dropped depends neither on the mesh, nor on the split into micro-batches, nor on whether
// activations are computed twice.
TEST(MeshEquality, Dropout) {
  const TrainingResult kept = RunTrainingJob({.model = "gpt2", .layers = 4, .steps = 3});
  EXPECT_NE(kept.steps[0].loss,
            OnOneRank({.model = "gpt2-dropout", .layers = 4, .steps = 3}).steps[0].loss);
  for (const char* model : {"gpt2-dropout", "llama-dropout"}) {
    const int tensor = std::string(model) == "gpt2-dropout" ? 3 : 2;
    for (int stage : {0, 2, 3}) {
      for (bool sequence_parallel : {true, false}) {
        for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
          ExpectEqualToOneProcess({.model = model,
                                   .ranks = 2 * tensor,
                                   .tensor = tensor,
                                   .sequence_parallel = sequence_parallel,
                                   .recompute = recompute,
                                   .layers = 4,
                                   .stage = stage,
                                   .micro_batches = 3});
        }
      }
    }
    for (const PipelineCase& c : kPipelines) {
      ExpectEqualToOneProcess({.model = model,
                               .ranks = 4,
                               .pipeline = 2,
                               .schedule = c.schedule,
                               .chunks = c.chunks,
                               .recompute = Recompute::kSelective,
                               .layers = 4,
                               .stage = c.highest_stage,
                               .micro_batches = 3});
    }
  }
}

TEST(MeshEquality, SchedulesAddUpInTheOrderOfGradientAccumulation) {
  TrainingJob job{.layers = 4, .micro_batches = 6, .deterministic = false};
  const TrainingResult accumulated = RunTrainingJob(job);
  for (const PipelineCase& c : kPipelines) {
    job.ranks = job.pipeline = 2;
    job.schedule = c.schedule;
    job.chunks = c.chunks;
    const TrainingResult result = RunTrainingJob(job);
    for (const auto& [name, values] : accumulated.state)
      EXPECT_EQ(result.state.at(name), values) << Describe(job) << ": " << name;
  }
}

TEST(MeshEquality, RecomputedActivationsGiveTheSameBits) {
  for (const char* model : {"llama", "gpt2-dropout"}) {
    for (int stage : {0, 3}) {
      TrainingJob job{.model = model, .ranks = 2, .layers = 3, .stage = stage, .micro_batches = 3};
      const TrainingResult kept = RunTrainingJob(job);
      for (Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
        job.recompute = recompute;
        ExpectSameBits(RunTrainingJob(job), kept, Describe(job));
      }
    }
  }
}

TEST(MeshEquality, CommunicationBesideComputationGivesTheSameBits) {
  for (const char* model : {"llama", "llama-tied", "gpt2"}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (int micro_batches : {1, 3}) {
        for (bool deterministic : {true, false}) {
          TrainingJob job{.model = model,
                          .ranks = 3,
                          .layers = 3,
                          .stage = stage,
                          .micro_batches = micro_batches,
                          .deterministic = deterministic};
          const TrainingResult after_another = RunTrainingJob(job);
          job.overlap = true;
          ExpectSameBits(RunTrainingJob(job), after_another, Describe(job) + ", overlapping");
        }
      }
    }
  }
}

// All axes at once, every stage and schedule, tied and not.
TEST(MeshEquality, ThreeAxes) {
  for (const char* model : {"llama", "llama-tied"}) {
    for (const PipelineCase& c : kPipelines) {
      for (int stage = 0; stage <= c.highest_stage; ++stage) {
        ExpectEqualToOneProcess({.model = model,
                                 .ranks = 8,
                                 .tensor = 2,
                                 .sequence_parallel = stage % 2 == 0,
                                 .pipeline = 2,
                                 .schedule = c.schedule,
                                 .chunks = c.chunks,
                                 .recompute = stage == 3 ? Recompute::kFull : Recompute::kNone,
                                 .layers = 4,
                                 .stage = stage,
                                 .micro_batches = 3,
                                 .overlap = stage % 2 == 1,
                                 .sgd = stage == 2});
      }
    }
  }
}

}  // namespace
}  // namespace shoal
