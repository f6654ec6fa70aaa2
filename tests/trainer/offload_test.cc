// What is offloaded to disk changes no bit of a run, and takes no memory but what the plan says.
#include <mutex>

#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "core/memory_file_system.h"
#include "core/offload.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/plan/plan.h"
#include "trainer/state_pieces.h"
#include "trainer/update_rules.h"

namespace shoal {
namespace {

TrainingJob Offloaded(TrainingJob job) {
  const bool halves = job.schedule == ScheduleKind::kZbH1 || job.schedule == ScheduleKind::kZbV;
  job.offload_optimizer = OffloadTo::kDisk;
  if (job.stage == 3) job.offload_parameters = OffloadTo::kDisk;
  job.offload_activations = halves ? OffloadTo::kNowhere : OffloadTo::kDisk;
  return job;
}

void ExpectSameAsInMemory(const TrainingJob& job) {
  const TrainingResult in_memory = RunTrainingJob(job), on_disk = RunTrainingJob(Offloaded(job));
  ExpectSameBits(on_disk, in_memory, Describe(job));
  for (const StepMetrics& step : on_disk.steps) {
    ASSERT_TRUE(step.offload) << Describe(job);
    EXPECT_GT(step.offload->written, 0) << Describe(job);
  }
}

TEST(OffloadEquality, StagesAndDtypes) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16})
      ExpectSameAsInMemory({.dtype = dtype, .ranks = 3, .stage = stage, .micro_batches = 2});
  }
}

TEST(OffloadEquality, Meshes) {
  ExpectSameAsInMemory({.ranks = 1, .stage = 0});
  ExpectSameAsInMemory({.ranks = 4, .tensor = 2, .stage = 3});
  ExpectSameAsInMemory({.ranks = 4, .replicate = 2, .stage = 3, .micro_batches = 3});
  ExpectSameAsInMemory({.model = "llama-tied", .ranks = 2, .stage = 3, .overlap = true});
  ExpectSameAsInMemory({.model = "mixtral", .ranks = 2, .expert = 2, .stage = 2});
  ExpectSameAsInMemory({.ranks = 4, .context = 2, .stage = 3, .seq_length = 8});
  ExpectSameAsInMemory({.dtype = at::kBFloat16,
                        .ranks = 2,
                        .stage = 3,
                        .overlap = true,
                        .quantized_weights = true,
                        .quantized_gradients = true});
}

TEST(OffloadEquality, Pipelines) {
  for (const PipelineCase& pipeline : kPipelines) {
    ExpectSameAsInMemory({.ranks = 4,
                          .pipeline = 2,
                          .schedule = pipeline.schedule,
                          .chunks = pipeline.chunks,
                          .layers = 4,
                          .stage = std::min(pipeline.highest_stage, 3),
                          .micro_batches = 4});
  }
}

TEST(OffloadEquality, OptimizersAndMeans) {
  for (const char* rule : {"sgd", "lion", "adafactor", "muon", "adamw_8bit"}) {
    for (int stage : {0, 3}) {
      ExpectSameAsInMemory({.dtype = at::kBFloat16,
                            .ranks = 2,
                            .stage = stage,
                            .rule = rule,
                            .groups = true,
                            .ema_decay = 0.9});
    }
  }
  ExpectSameAsInMemory({.ranks = 4, .tensor = 2, .stage = 3, .rule = "muon"});
}

TEST(OffloadEquality, Models) {
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
    ExpectSameAsInMemory(
        {.dtype = at::kFloat, .ranks = 2, .recompute = recompute, .layers = 3, .stage = 3});
  }
  ExpectSameAsInMemory({.model = "gpt2", .ranks = 2, .stage = 3});
  ExpectSameAsInMemory(
      {.model = "dots1", .ranks = 2, .layers = 3, .stage = 3, .router_bias_rate = 0.01});
  ExpectSameAsInMemory({.model = "mixtral", .ranks = 2, .stage = 3, .router_z_loss = 0.1});
  ExpectSameAsInMemory({.model = "llama-dropout", .ranks = 2, .stage = 3});
  ExpectSameAsInMemory({.ranks = 2, .stage = 3, .freeze = {"embed", "layers.0"}});
  ExpectSameAsInMemory({.ranks = 2, .stage = 3, .lora = true});
  ExpectSameAsInMemory({.ranks = 2, .stage = 3, .objective = "dpo"});
}

TEST(OffloadEquality, SkippedSteps) {
  const TrainingJob job{.ranks = 2, .stage = 2, .poison_step = 2};
  const TrainingResult on_disk = RunTrainingJob(Offloaded(job));
  EXPECT_TRUE(on_disk.steps[2].skipped);
  EXPECT_EQ(on_disk.state, RunTrainingJob(job).state);
}

// What a run in memory saves, one on disk reads, and the other way round.
TEST(OffloadCheckpoint, AnyRunReadsAnyOthers) {
  const TrainingJob job{
      .dtype = at::kBFloat16, .ranks = 2, .stage = 3, .steps = 2, .ema_decay = 0.9};
  TrainingJob other = job;
  other.ranks = 3;
  for (const auto& [saving, loading] : {std::pair{job, Offloaded(other)},
                                        {Offloaded(job), other},
                                        {Offloaded(job), Offloaded(job)}}) {
    MemoryFileSystem files;
    TrainerState state;
    state.set_step(2);
    std::map<std::string, std::vector<double>> saved, loaded;
    std::mutex mutex;
    const absl::Status save = RunRanks(saving.ranks, [&](Communicator& comm) {
      return BuildTrainingJob(saving, comm, [&](JobParts parts) -> absl::Status {
        SHOAL_RETURN_IF_ERROR(parts.trainer.Run());
        {
          const std::lock_guard lock(mutex);
          CollectState(parts.optimizer, saved);
        }
        return SaveCheckpoint(files, comm, "/run", state,
                              ToStatePieces(parts.optimizer.PiecesToSave()));
      });
    });
    ASSERT_TRUE(save.ok()) << save;
    const absl::Status load = RunRanks(loading.ranks, [&](Communicator& comm) {
      return BuildTrainingJob(loading, comm, [&](JobParts parts) -> absl::Status {
        SHOAL_RETURN_IF_ERROR(LoadCheckpoint(files, comm, "/run/step-2",
                                             ToStatePieces(parts.optimizer.PiecesToLoad()))
                                  .status());
        parts.parameters.SyncFromMaster();
        const std::lock_guard lock(mutex);
        CollectState(parts.optimizer, loaded);
        return absl::OkStatus();
      });
    });
    ASSERT_TRUE(load.ok()) << load;
    EXPECT_EQ(saved, loaded);
  }
}

struct DiskBytes {
  int64_t weights = 0, masters = 0, optimizer = 0, read = 0, written = 0;
  auto operator<=>(const DiskBytes&) const = default;
};

std::ostream& operator<<(std::ostream& out, const DiskBytes& bytes) {
  return out << "weights " << bytes.weights << ", master weights " << bytes.masters
             << ", optimizer " << bytes.optimizer << ", read " << bytes.read << ", written "
             << bytes.written;
}

// Of the rank that has most, in the second step.
void ExpectAsPlanned(const TrainingJob& job) {
  DiskBytes most;
  ModelConfig config;
  ZeroOptions zero;
  std::mutex mutex;
  const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      SHOAL_RETURN_IF_ERROR(parts.trainer.TrainStep().status());
      SHOAL_ASSIGN_OR_RETURN(const StepMetrics step, parts.trainer.TrainStep());
      const HeldBytes held = parts.parameters.held_bytes();
      const DiskBytes mine{held.weights_on_disk, held.master_weights_on_disk,
                           parts.optimizer.state_bytes_on_disk(), step.offload->read,
                           step.offload->written};
      const std::lock_guard lock(mutex);
      if (mine.optimizer >= most.optimizer) most = mine;
      config = parts.model.config;
      zero = parts.parameters.options();
      EXPECT_EQ(mine.weights + mine.masters + mine.optimizer, zero.offload->bytes_reserved());
      return absl::OkStatus();
    });
  });
  ASSERT_TRUE(status.ok()) << status;
  const OptimizerSection optimizer = OptimizerRecipe(job).proto.optimizer();
  Planner planner(config, job.freeze, optimizer);
  zero.offload = nullptr;
  const auto plan = planner.Make(
      {.mesh = job.mesh(),
       .zero = zero,
       .sequence_parallel = job.sequence_parallel,
       .schedule = job.schedule,
       .chunks = job.chunks,
       .sequences = 1,
       .seq_length = 7,
       .optimizer_states = static_cast<int>(UpdateRuleOf(optimizer)->state_names().size()),
       .whole_rule = WholeRuleOf(optimizer),
       .ema = optimizer.has_ema()});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const OffloadPlan& planned = plan->ranks[0].memory.offload;
  EXPECT_EQ((DiskBytes{planned.weights, planned.master_weights, planned.optimizer, planned.read,
                       planned.written}),
            most)
      << Describe(job);
}

TEST(OffloadPlan, BytesOnDiskAndMoved) {
  for (int stage = 0; stage <= 3; ++stage) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const char* rule : {"adamw", "sgd", "adafactor", "muon", "adamw_8bit"}) {
        TrainingJob job{.dtype = dtype, .ranks = 3, .stage = stage, .micro_batches = 2};
        job.rule = rule;
        job.ema_decay = stage == 2 ? 0.9 : 0;
        job.offload_optimizer = OffloadTo::kDisk;
        ExpectAsPlanned(job);
        if (stage < 3) continue;
        job.offload_parameters = OffloadTo::kDisk;
        ExpectAsPlanned(job);
        job.freeze = {"layers.0"};
        job.offload_optimizer = OffloadTo::kNowhere;
        ExpectAsPlanned(job);
      }
    }
  }
  ExpectAsPlanned({.model = "llama-tied",
                   .ranks = 4,
                   .tensor = 2,
                   .stage = 3,
                   .offload_optimizer = OffloadTo::kDisk,
                   .offload_parameters = OffloadTo::kDisk});
}

// Rank threads share one count of tensors, so what they take is looked at one rank at a time.
TEST(OffloadMemory, StatesLeaveItAndMeansSwapInPlace) {
  TrainingJob job{.dtype = at::kFloat, .ranks = 1, .stage = 0, .steps = 2, .ema_decay = 0.9};
  const auto taken = [](const TrainingJob& job) {
    int64_t bytes = 0;
    const absl::Status status = RunRanks(1, [&](Communicator& comm) {
      const int64_t before = TensorBytes();
      return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
        SHOAL_RETURN_IF_ERROR(parts.trainer.Run());
        parts.optimizer.SwapEma();
        parts.optimizer.SwapEma();
        const bool on_disk = job.offload_optimizer == OffloadTo::kDisk;
        if (on_disk) parts.parameters.options().offload->Drain();
        bytes = TensorBytes() - before;
        EXPECT_EQ(parts.optimizer.state_bytes() == 0, on_disk);
        EXPECT_EQ(parts.optimizer.state_bytes_on_disk() > 0, on_disk);
        return absl::OkStatus();
      });
    });
    EXPECT_TRUE(status.ok()) << status;
    return bytes;
  };
  CountTensorMemory();
  const int64_t in_memory = taken(job);
  job.offload_optimizer = OffloadTo::kDisk;
  const int64_t on_disk = taken(job);
  // Moments and the mean: three numbers a weight.
  int64_t states = 0;
  const absl::Status status = RunRanks(1, [&](Communicator& comm) {
    job.offload_optimizer = OffloadTo::kNowhere;
    return BuildTrainingJob(job, comm, [&](JobParts parts) {
      states = parts.optimizer.state_bytes();
      return absl::OkStatus();
    });
  });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_NEAR(in_memory - on_disk, states, 4096) << in_memory << " in memory, " << on_disk;
}

}  // namespace
}  // namespace shoal
