#include "tests/trainer/saved_job.h"

#include <gtest/gtest.h>

#include <mutex>

#include "checkpoint/checkpoint.h"
#include "core/memory_file_system.h"
#include "core/status.h"
#include "parallel/comm/local_communicator.h"
#include "trainer/state_pieces.h"

namespace shoal {
namespace {

using State = std::map<std::string, std::vector<double>>;

absl::Status OnRanks(const TrainingJob& job,
                     const std::function<absl::Status(Communicator&)>& body) {
  return RunRanks(job.ranks, [&](Communicator& host) { return OnDevice(job.device, host, body); });
}

// Trains and saves; returns what was saved.
State TrainAndSave(const TrainingJob& job, FileSystem& files) {
  std::mutex mutex;
  State state;
  const absl::Status status = OnRanks(job, [&](Communicator& comm) {
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
  const absl::Status status = OnRanks(job, [&](Communicator& comm) {
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

}  // namespace

void ExpectEachReadsAll(const std::vector<TrainingJob>& jobs) {
  for (const TrainingJob& from : jobs) {
    MemoryFileSystem files;
    const State saved = TrainAndSave(from, files);
    for (const TrainingJob& to : jobs) {
      const State loaded = Load(to, files, from.steps);
      ASSERT_EQ(loaded.size(), saved.size());
      for (const auto& [name, values] : saved)
        EXPECT_EQ(loaded.at(name), values)
            << Describe(from) << " -> " << Describe(to) << ": " << name;
    }
  }
}

}  // namespace shoal
