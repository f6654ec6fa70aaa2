// Every call of the disk fails, tears or is the last one, on every rank: a reader finds the old
// step or the new one, whole, and no rank hangs or answers alone.
#include <gtest/gtest.h>

#include <set>

#include "core/faulty_file_system.h"
#include "core/memory_file_system.h"
#include "parallel/comm/local_communicator.h"
#include "tests/checkpoint/states.h"

namespace shoal {
namespace {

using testing::CompareWithState;
using testing::EmptyPieces;
using testing::Layout;
using testing::MakeState;
using testing::PiecesOf;
using testing::StateOfStep;

constexpr char kDirectory[] = "/run/checkpoints";
constexpr int kRanks = 2;

// Saves step `step` of a state told by `seed`, rank r through disks[r]; returns each rank's status.
std::vector<absl::Status> Save(const std::vector<FileSystem*>& disks, int64_t step, int seed) {
  SaveOptions options;
  options.save_total_limit = 1;
  options.chunk_bytes = 256;
  std::vector<absl::Status> statuses(disks.size());
  const absl::Status ran = RunRanks(static_cast<int>(disks.size()), [&](Communicator& comm) {
    TrainerState state = StateOfStep(step);
    state.set_seed(seed);
    statuses[comm.rank()] = SaveCheckpoint(
        *disks[comm.rank()], comm, kDirectory, state,
        PiecesOf(MakeState(seed), Layout::kSharded, comm.rank(), comm.size()), options);
    return absl::OkStatus();
  });
  EXPECT_EQ(ran, absl::OkStatus());
  return statuses;
}

// The seed of the state that the newest valid step holds, after it was loaded and compared; 0:
// none.
int LoadedSeed(FileSystem& files) {
  std::vector<std::string> skipped;
  const auto newest = FindNewestValid(files, kDirectory, &skipped);
  EXPECT_EQ(newest.status(), absl::OkStatus());
  EXPECT_TRUE(skipped.empty()) << "a visible step is not whole: " << skipped[0];
  if (!newest.ok() || !*newest) return 0;
  const auto alone = MakeSingleRankCommunicator();
  const auto pieces = EmptyPieces(MakeState(1), Layout::kSharded, 0, 1);
  const auto state = LoadCheckpoint(files, *alone, **newest, pieces);
  EXPECT_EQ(state.status(), absl::OkStatus());
  if (!state.ok()) return 0;
  EXPECT_EQ(CompareWithState(pieces, MakeState(static_cast<int>(state->seed()))), absl::OkStatus());
  return static_cast<int>(state->seed());
}

struct Outcomes {
  int old_kept = 0, new_there = 0;
};

// One save with one fault; `power_loss` drops what was not synced.
void SaveWithFault(int faulty_rank, const Fault& fault, int64_t new_step, bool power_loss,
                   Outcomes* outcomes) {
  MemoryFileSystem disk;
  for (const absl::Status& status : Save({&disk, &disk}, 1, /*seed=*/1))
    ASSERT_EQ(status, absl::OkStatus());
  FaultyFileSystem faulty(disk, fault);
  std::vector<FileSystem*> disks(kRanks, &disk);
  disks[faulty_rank] = &faulty;
  const auto statuses = Save(disks, new_step, /*seed=*/2);
  for (const absl::Status& status : statuses)
    EXPECT_EQ(status, statuses[0]) << "ranks answer differently";
  if (power_loss) disk.DropUnsynced();

  const int seed = LoadedSeed(disk);
  EXPECT_TRUE(seed == 1 || seed == 2) << "both steps are lost";
  if (statuses[0].ok()) {
    EXPECT_EQ(seed, 2) << "the save answered OK, the step is not there";
  }
  ++(seed == 2 ? outcomes->new_there : outcomes->old_kept);

  // The next start can save, and leaves nothing behind.
  for (const absl::Status& status : Save({&disk, &disk}, 3, /*seed=*/3))
    ASSERT_EQ(status, absl::OkStatus());
  EXPECT_EQ(LoadedSeed(disk), 3);
  EXPECT_EQ(disk.List(kDirectory)->size(), 1u);
}

// The calls that one undisturbed save makes on `rank`.
int64_t CallsOfASave(int rank, int64_t new_step) {
  MemoryFileSystem disk;
  Save({&disk, &disk}, 1, 1);
  FaultyFileSystem counting(disk, Fault{});
  std::vector<FileSystem*> disks(kRanks, &disk);
  disks[rank] = &counting;
  Save(disks, new_step, 2);
  return counting.calls();
}

void EveryCall(int64_t new_step) {
  for (const auto kind : {Fault::Kind::kFail, Fault::Kind::kShortWrite, Fault::Kind::kCrashBefore,
                          Fault::Kind::kCrashTorn, Fault::Kind::kCrashAfter}) {
    Outcomes outcomes;
    for (int rank = 0; rank < kRanks; ++rank) {
      const int64_t calls = CallsOfASave(rank, new_step);
      ASSERT_GE(calls, rank == 0 ? 20 : 4);
      for (int64_t call = 1; call <= calls; ++call) {
        for (const bool power_loss : {false, true}) {
          SCOPED_TRACE(absl::StrCat("rank ", rank, ", call ", call, " of ", calls, ", fault ",
                                    static_cast<int>(kind), power_loss ? ", power loss" : ""));
          SaveWithFault(rank, {.kind = kind, .call = call}, new_step, power_loss, &outcomes);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
    // The loop reaches both sides of the commit.
    EXPECT_GT(outcomes.old_kept, 0);
    EXPECT_GT(outcomes.new_there, 0);
  }
}

TEST(CheckpointCrash, EveryCallOfASaveBesideAnOldStep) { EveryCall(/*new_step=*/2); }

TEST(CheckpointCrash, EveryCallOfASaveThatReplacesItsStep) { EveryCall(/*new_step=*/1); }

TEST(CheckpointCrash, EveryCallOfALoadFailsAllRanksAlike) {
  MemoryFileSystem disk;
  for (const absl::Status& status : Save({&disk, &disk}, 1, 1)) ASSERT_EQ(status, absl::OkStatus());
  for (int faulty_rank = 0; faulty_rank < kRanks; ++faulty_rank) {
    for (int64_t call = 1;; ++call) {
      FaultyFileSystem faulty(disk, {.kind = Fault::Kind::kFail, .call = call});
      std::vector<absl::Status> statuses(kRanks);
      ASSERT_EQ(RunRanks(kRanks,
                         [&](Communicator& comm) {
                           FileSystem& files =
                               comm.rank() == faulty_rank ? static_cast<FileSystem&>(faulty) : disk;
                           statuses[comm.rank()] =
                               LoadCheckpoint(
                                   files, comm, "/run/checkpoints/step-1",
                                   EmptyPieces(MakeState(1), Layout::kSharded, comm.rank(), kRanks))
                                   .status();
                           return absl::OkStatus();
                         }),
                absl::OkStatus());
      EXPECT_EQ(statuses[0], statuses[1]) << "call " << call;
      EXPECT_EQ(statuses[0].ok(), faulty.calls() < call) << "call " << call;
      if (statuses[0].ok()) break;
    }
  }
}

}  // namespace
}  // namespace shoal
