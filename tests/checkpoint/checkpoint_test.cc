#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/manifest.h"
#include "core/memory_file_system.h"
#include "models/safetensors.h"
#include "parallel/comm/local_communicator.h"
#include "tests/checkpoint/states.h"

namespace shoal {
namespace {

using testing::CompareWithState;
using ::testing::ElementsAre;
using testing::EmptyPieces;
using ::testing::HasSubstr;
using testing::Layout;
using testing::MakeState;
using testing::PiecesOf;
using testing::StateOfStep;

constexpr char kDirectory[] = "/run/checkpoints";

SaveOptions SmallChunks(int limit = 2) {
  SaveOptions options;
  options.save_total_limit = limit;
  options.chunk_bytes = 64;
  return options;
}

absl::Status Save(FileSystem& files, int ranks, Layout layout, int64_t step,
                  SaveOptions options = SmallChunks()) {
  return RunRanks(ranks, [&](Communicator& comm) {
    return SaveCheckpoint(files, comm, kDirectory, StateOfStep(step),
                          PiecesOf(MakeState(step), layout, comm.rank(), comm.size()), options);
  });
}

absl::Status LoadAndCompare(FileSystem& files, int ranks, Layout layout, int64_t step) {
  return RunRanks(ranks, [&](Communicator& comm) -> absl::Status {
    const auto pieces = EmptyPieces(MakeState(step), layout, comm.rank(), comm.size());
    SHOAL_ASSIGN_OR_RETURN(
        const TrainerState state,
        LoadCheckpoint(files, comm, absl::StrCat(kDirectory, "/step-", step), pieces));
    if (state.SerializeAsString() != StateOfStep(step).SerializeAsString()) {
      return absl::InternalError(state.ShortDebugString());
    }
    return CompareWithState(pieces, MakeState(step));
  });
}

constexpr Layout kLayouts[] = {Layout::kSharded, Layout::kReplicated, Layout::kUneven,
                               Layout::kColumns};

TEST(Checkpoint, AnyLayoutReadsAnyLayout) {
  for (int writers = 1; writers <= 4; ++writers) {
    for (const Layout written : kLayouts) {
      MemoryFileSystem files;
      ASSERT_EQ(Save(files, writers, written, 20), absl::OkStatus());
      files.DropUnsynced();  // what a save that returned OK wrote is durable
      for (int readers = 1; readers <= 4; ++readers) {
        for (const Layout read : kLayouts) {
          EXPECT_EQ(LoadAndCompare(files, readers, read, 20), absl::OkStatus())
              << writers << " ranks in layout " << static_cast<int>(written) << " wrote, "
              << readers << " in layout " << static_cast<int>(read) << " read";
        }
      }
    }
  }
}

TEST(Checkpoint, ShardsArePlainSafetensors) {
  MemoryFileSystem files;
  ASSERT_EQ(Save(files, 1, Layout::kSharded, 5), absl::OkStatus());
  const auto reader =
      SafetensorsReader::Open(files, "/run/checkpoints/step-5/rank-00000.safetensors");
  ASSERT_EQ(reader.status(), absl::OkStatus());
  for (const auto& tensor : MakeState(5)) {
    const SafetensorsEntry* entry = (*reader)->Find(tensor.name);
    ASSERT_NE(entry, nullptr) << tensor.name;
    EXPECT_EQ(entry->shape, tensor.value.sizes().vec()) << tensor.name;
    at::Tensor got = at::empty_like(tensor.value);
    ASSERT_EQ((*reader)->Read(*entry, 0, got), absl::OkStatus());
    EXPECT_TRUE(at::equal(got, tensor.value)) << tensor.name;
  }
}

TEST(Checkpoint, ReplicatedPiecesAreWrittenOnceByAllRanks) {
  MemoryFileSystem files;
  ASSERT_EQ(Save(files, 4, Layout::kReplicated, 5), absl::OkStatus());
  const auto manifest = ReadManifest(files, "/run/checkpoints/step-5");
  ASSERT_EQ(manifest.status(), absl::OkStatus());
  ASSERT_EQ(manifest->files_size(), 4);
  int64_t bytes = 0;
  for (const auto& tensor : MakeState(5)) bytes += tensor.value.nbytes();
  for (const auto& file : manifest->files()) {
    EXPECT_GT(file.bytes(), file.header_bytes()) << file.name();
    bytes -= file.bytes() - file.header_bytes();
  }
  EXPECT_EQ(bytes, 0);
}

TEST(Checkpoint, KeepsTheNewest) {
  MemoryFileSystem files;
  for (const int64_t step : {9, 10, 11, 100})
    ASSERT_EQ(Save(files, 2, Layout::kSharded, step), absl::OkStatus());
  EXPECT_THAT(*files.List(kDirectory), ElementsAre("step-100", "step-11"));
  ASSERT_EQ(Save(files, 2, Layout::kSharded, 101, SmallChunks(1)), absl::OkStatus());
  EXPECT_THAT(*files.List(kDirectory), ElementsAre("step-101"));
}

TEST(Checkpoint, LeavesLaterStepsOfAnAbandonedRunAndWarns) {
  MemoryFileSystem files;
  for (const int64_t step : {10, 20})
    ASSERT_EQ(Save(files, 1, Layout::kSharded, step), absl::OkStatus());
  std::vector<std::string> warnings;
  SaveOptions options = SmallChunks(1);
  options.warn = [&](const std::string& warning) { warnings.push_back(warning); };
  ASSERT_EQ(Save(files, 1, Layout::kSharded, 15, options), absl::OkStatus());
  EXPECT_THAT(*files.List(kDirectory), ElementsAre("step-15", "step-20"));
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("step-20 is of a later step")));
}

TEST(Checkpoint, ReplacesAStepInOneSwap) {
  MemoryFileSystem files;
  ASSERT_EQ(Save(files, 3, Layout::kSharded, 20), absl::OkStatus());
  ASSERT_EQ(Save(files, 2, Layout::kReplicated, 20), absl::OkStatus());
  files.DropUnsynced();
  EXPECT_THAT(*files.List("/run/checkpoints/step-20"),
              ElementsAre("MANIFEST", "rank-00000.safetensors", "rank-00001.safetensors"));
  EXPECT_EQ(LoadAndCompare(files, 2, Layout::kSharded, 20), absl::OkStatus());
}

TEST(Checkpoint, SweepsWhatDeadSavesLeft) {
  MemoryFileSystem files;
  for (const char* left : {"/run/checkpoints/.tmp-step-3-00", "/run/checkpoints/.trash-step-1"}) {
    ASSERT_EQ(CreateDirectories(files, left), absl::OkStatus());
    ASSERT_EQ(WriteFileAtomically(files, absl::StrCat(left, "/rank-00000.safetensors"), "half"),
              absl::OkStatus());
  }
  EXPECT_EQ(*FindNewestValid(files, kDirectory, nullptr), std::nullopt);
  ASSERT_EQ(Save(files, 2, Layout::kSharded, 4), absl::OkStatus());
  EXPECT_THAT(*files.List(kDirectory), ElementsAre("step-4"));
}

TEST(Checkpoint, FindsTheNewestThatVerifies) {
  MemoryFileSystem files;
  EXPECT_EQ(*FindNewestValid(files, kDirectory, nullptr), std::nullopt);
  for (const int64_t step : {8, 9, 10})
    ASSERT_EQ(Save(files, 2, Layout::kSharded, step, SmallChunks(5)), absl::OkStatus());
  ASSERT_EQ(files.Remove("/run/checkpoints/step-10/MANIFEST"), absl::OkStatus());
  ASSERT_EQ(files.Rename("/run/checkpoints/step-9", "/run/checkpoints/step-12"), absl::OkStatus());
  ASSERT_EQ(RunRanks(3,
                     [&](Communicator& comm) -> absl::Status {
                       std::vector<std::string> skipped;
                       SHOAL_ASSIGN_OR_RETURN(const auto found,
                                              FindNewestValid(files, comm, kDirectory, &skipped));
                       EXPECT_EQ(found, "/run/checkpoints/step-8");
                       EXPECT_THAT(skipped, ElementsAre(HasSubstr("step-12 holds step 9"),
                                                        HasSubstr("no MANIFEST")));
                       return absl::OkStatus();
                     }),
            absl::OkStatus());
}

TEST(Checkpoint, NamesEveryTensorThatDoesNotFit) {
  MemoryFileSystem files;
  ASSERT_EQ(Save(files, 2, Layout::kSharded, 20), absl::OkStatus());
  const absl::Status status = RunRanks(2, [&](Communicator& comm) {
    auto state = MakeState(20);
    state[0].value = at::zeros({7, 13});
    state[2].value = at::zeros({7}, at::kDouble);
    state[5].name = "new";
    return LoadCheckpoint(files, comm, "/run/checkpoints/step-20",
                          EmptyPieces(state, Layout::kSharded, comm.rank(), comm.size()))
        .status();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  for (const char* line :
       {"weights/model.embed_tokens.weight: shape (13, 7) in the checkpoint, (7, 13) wanted",
        "weights/model.norm.weight: F32 in the checkpoint, F64 wanted",
        "new: not in the checkpoint", "flags: in the checkpoint, but not wanted"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(line));
  }
}

TEST(Checkpoint, ReadsAPartWhenAsked) {
  MemoryFileSystem files;
  ASSERT_EQ(Save(files, 2, Layout::kSharded, 20), absl::OkStatus());
  const auto alone = MakeSingleRankCommunicator();
  auto pieces = EmptyPieces(MakeState(20), Layout::kSharded, 0, 1);
  pieces.resize(1);
  ASSERT_EQ(LoadCheckpoint(files, *alone, "/run/checkpoints/step-20", pieces, UnreadTensors::kAllow)
                .status(),
            absl::OkStatus());
  EXPECT_EQ(CompareWithState(pieces, MakeState(20)), absl::OkStatus());
}

TEST(Checkpoint, RefusesPiecesThatDoNotTile) {
  const auto attempt = [](std::function<void(int, std::vector<StatePiece>&)> spoil) {
    MemoryFileSystem files;
    const absl::Status status = RunRanks(2, [&](Communicator& comm) {
      auto pieces = PiecesOf(MakeState(1), Layout::kSharded, comm.rank(), comm.size());
      spoil(comm.rank(), pieces);
      return SaveCheckpoint(files, comm, kDirectory, StateOfStep(1), pieces);
    });
    EXPECT_EQ(*FindNewestValid(files, kDirectory, nullptr), std::nullopt);
    return std::string(status.message());
  };
  EXPECT_THAT(attempt([](int rank, auto& pieces) {
                if (rank == 0) pieces.erase(pieces.begin());
              }),
              HasSubstr("weights/model.embed_tokens.weight: no rank holds element 0"));
  EXPECT_THAT(attempt([](int rank, auto& pieces) {
                if (rank == 1) pieces[0].begin -= 1;
              }),
              HasSubstr("overlap another piece, which ends at 45"));
  EXPECT_THAT(attempt([](int rank, auto& pieces) {
                if (rank == 1) pieces[0].begin += 1;
              }),
              HasSubstr("rank 1 holds elements [46, 92) of shape (13, 7)"));
  EXPECT_THAT(attempt([](int rank, auto& pieces) {
                if (rank == 1) pieces[0].data = pieces[0].data.to(at::kHalf);
              }),
              HasSubstr("is F16 (13, 7) on rank 1 but F32 (13, 7) on rank 0"));
  EXPECT_THAT(attempt([](int rank, auto& pieces) {
                if (rank == 1) pieces[0].name = "bad\nname";
              }),
              HasSubstr("rank 1: \"bad"));
}

TEST(Checkpoint, KnowsItsOwnNames) {
  EXPECT_EQ(StepOfName("step-20"), 20);
  EXPECT_EQ(StepOfName("step-0"), 0);
  for (const char* name :
       {"step-020", "step--1", "step-", "step-1x", "step- 1", "step-99999999999999999999", "x"}) {
    EXPECT_EQ(StepOfName(name), std::nullopt) << name;
  }
}

}  // namespace
}  // namespace shoal
