// A checkpoint written on any mesh is read on any other, to the last bit, and training goes on
// alike.
#include <gtest/gtest.h>

#include <mutex>

#include "checkpoint/checkpoint.h"
#include "core/memory_file_system.h"
#include "core/status.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/state_pieces.h"

namespace shoal {
namespace {

using State = std::map<std::string, std::vector<double>>;

// Trains two steps and saves; returns what was saved.
State TrainAndSave(const TrainingJob& job, FileSystem& files) {
  std::mutex mutex;
  State state;
  const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      SHOAL_RETURN_IF_ERROR(parts.trainer.Run());
      {
        const std::lock_guard lock(mutex);
        CollectState(parts.optimizer, state);
      }
      TrainerState trainer;
      trainer.set_step(job.steps);
      return SaveCheckpoint(files, comm, "checkpoints", trainer,
                            ToStatePieces(parts.optimizer.PiecesToSave()));
    });
  });
  EXPECT_TRUE(status.ok()) << Describe(job) << ": " << status;
  return state;
}

// Loads what TrainAndSave left; returns it as this job's ranks would save it.
State Load(const TrainingJob& job, FileSystem& files, int step) {
  std::mutex mutex;
  State state;
  const absl::Status status = RunRanks(job.ranks, [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      SHOAL_RETURN_IF_ERROR(LoadCheckpoint(files, comm, absl::StrCat("checkpoints/step-", step),
                                           ToStatePieces(parts.optimizer.PiecesToLoad()))
                                .status());
      parts.parameters.SyncFromMaster();
      {
        const std::lock_guard lock(mutex);
        CollectState(parts.optimizer, state);
      }
      return absl::OkStatus();
    });
  });
  EXPECT_TRUE(status.ok()) << Describe(job) << ": " << status;
  return state;
}

void ExpectEachReadsAll(const std::vector<TrainingJob>& layouts) {
  for (const TrainingJob& from : layouts) {
    MemoryFileSystem files;
    const State saved = TrainAndSave(from, files);
    for (const TrainingJob& to : layouts) {
      const State loaded = Load(to, files, from.steps);
      ASSERT_EQ(loaded.size(), saved.size());
      for (const auto& [name, values] : saved)
        EXPECT_EQ(loaded.at(name), values)
            << Describe(from) << " -> " << Describe(to) << ": " << name;
    }
  }
}

TEST(Reshard, EveryLayoutReadsEveryOther) {
  for (const char* model : {"llama-tied", "llama-uneven", "gpt2"}) {
    const int tensor = std::string(model) == "gpt2" ? 3 : 2;
    const std::vector<TrainingJob> layouts = {
        {.model = model, .steps = 2},
        {.model = model, .ranks = 3, .stage = 3, .steps = 2},
        {.model = model, .ranks = 4, .replicate = 2, .stage = 2, .steps = 2},
        {.model = model, .ranks = tensor, .tensor = tensor, .stage = 0, .steps = 2},
        {.model = model, .ranks = 2 * tensor, .tensor = tensor, .stage = 3, .steps = 2},
        {.model = model, .ranks = 2, .pipeline = 2, .stage = 1, .steps = 2},
        {.model = model,
         .ranks = 4,
         .pipeline = 2,
         .schedule = ScheduleKind::kZbV,
         .chunks = 2,
         .stage = 1,
         .steps = 2},
        {.model = model,
         .ranks = 4 * tensor,
         .tensor = tensor,
         .pipeline = 2,
         .stage = 3,
         .steps = 2},
    };
    ExpectEachReadsAll(layouts);
  }
}

TEST(Reshard, ExpertsOverRanks) {
  const char* model = "mixtral";
  ExpectEachReadsAll({
      {.model = model, .steps = 2},
      {.model = model, .ranks = 3, .stage = 3, .steps = 2},
      {.model = model, .ranks = 4, .expert = 4, .stage = 2, .steps = 2},
      {.model = model, .ranks = 4, .expert = 2, .stage = 0, .steps = 2},
      {.model = model, .ranks = 4, .expert = 2, .stage = 3, .steps = 2},
      {.model = model, .ranks = 4, .tensor = 2, .expert = 2, .stage = 1, .steps = 2},
      {.model = model, .ranks = 4, .pipeline = 2, .expert = 2, .stage = 3, .steps = 2},
  });
}

TEST(Reshard, RouterBiases) {
  const char* model = "dots1";
  ExpectEachReadsAll({
      {.model = model, .steps = 2, .router_bias_rate = 0.01},
      {.model = model, .ranks = 4, .expert = 2, .stage = 3, .steps = 2, .router_bias_rate = 0.01},
      {.model = model, .ranks = 4, .tensor = 2, .stage = 1, .steps = 2, .router_bias_rate = 0.01},
      {.model = model, .ranks = 4, .pipeline = 2, .stage = 2, .steps = 2, .router_bias_rate = 0.01},
  });
}

}  // namespace
}  // namespace shoal
