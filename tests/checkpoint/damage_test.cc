// A flipped bit anywhere in a checkpoint is found, and what it struck is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/manifest.h"
#include "core/memory_file_system.h"
#include "models/safetensors.h"
#include "parallel/comm/local_communicator.h"
#include "tests/checkpoint/states.h"

namespace shoal {
namespace {

using testing::EmptyPieces;
using ::testing::HasSubstr;
using testing::Layout;
using testing::MakeState;
using testing::PiecesOf;
using testing::StateOfStep;

constexpr char kStep[] = "/run/checkpoints/step-1";

class Damage : public ::testing::Test {
 protected:
  void SetUp() override {
    SaveOptions options;
    options.chunk_bytes = 64;
    ASSERT_EQ(RunRanks(2,
                       [&](Communicator& comm) {
                         return SaveCheckpoint(
                             files_, comm, "/run/checkpoints", StateOfStep(1),
                             PiecesOf(MakeState(1), Layout::kSharded, comm.rank(), 2), options);
                       }),
              absl::OkStatus());
    manifest_ = *ReadManifest(files_, kStep);
  }

  void Write(const std::string& name, const std::string& bytes) {
    auto file = *files_.OpenForWrite(JoinPath(kStep, name), OpenMode::kTruncate);
    ASSERT_EQ(file->Append(bytes), absl::OkStatus());
  }

  absl::Status Load() {
    return LoadCheckpoint(files_, *alone_, kStep, EmptyPieces(MakeState(1), Layout::kSharded, 0, 1))
        .status();
  }

  // The tensor whose byte of file number `file` lies at `offset`, or "" in the header.
  std::string Struck(int file, int64_t offset) const {
    for (const Manifest::Tensor& tensor : manifest_.tensors()) {
      const int64_t element_bytes = c10::elementSize(*DtypeOfSafetensors(tensor.dtype()));
      for (const Manifest::Chunk& chunk : tensor.chunks()) {
        const int64_t bytes = (chunk.end() - chunk.begin()) * element_bytes;
        if (chunk.file() == file && chunk.offset() <= offset && offset < chunk.offset() + bytes)
          return tensor.name();
      }
    }
    return "";
  }

  MemoryFileSystem files_;
  std::unique_ptr<Communicator> alone_ = MakeSingleRankCommunicator();
  Manifest manifest_;
};

TEST_F(Damage, EveryByteOfEveryShard) {
  for (int file = 0; file < manifest_.files_size(); ++file) {
    const std::string name = manifest_.files(file).name();
    const std::string whole = *ReadFile(files_, JoinPath(kStep, name), 1 << 20);
    for (size_t at = 0; at < whole.size(); ++at) {
      std::string damaged = whole;
      damaged[at] ^= static_cast<char>(1 << (at % 8));
      Write(name, damaged);
      const absl::Status loaded = Load(),
                         verified = VerifyCheckpoint(files_, kStep, VerifyLevel::kChecksums);
      const std::string struck = Struck(file, static_cast<int64_t>(at));
      for (const absl::Status& status : {loaded, verified}) {
        ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss)
            << name << " byte " << at << ": " << status;
        ASSERT_THAT(std::string(status.message()), HasSubstr(struck.empty() ? name : struck))
            << "byte " << at;
      }
    }
    Write(name, whole);
  }
  EXPECT_EQ(Load(), absl::OkStatus());
}

TEST_F(Damage, EveryBitOfTheManifest) {
  const std::string whole = *ReadFile(files_, JoinPath(kStep, kManifestName), 1 << 20);
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] ^= static_cast<char>(1 << (bit % 8));
    const auto decoded = DecodeManifest(damaged);
    ASSERT_EQ(decoded.status().code(), absl::StatusCode::kDataLoss)
        << "bit " << bit << ": " << decoded.status();
  }
}

TEST_F(Damage, ShortAndLongFiles) {
  for (const std::string& name : {std::string(kManifestName), manifest_.files(1).name()}) {
    const std::string whole = *ReadFile(files_, JoinPath(kStep, name), 1 << 20);
    for (const size_t size :
         {size_t{0}, size_t{7}, size_t{23}, whole.size() / 2, whole.size() - 1}) {
      Write(name, whole.substr(0, size));
      EXPECT_EQ(Load().code(), absl::StatusCode::kDataLoss) << name << " cut to " << size;
    }
    Write(name, whole + "x");
    EXPECT_EQ(VerifyCheckpoint(files_, kStep, VerifyLevel::kSizes).code(),
              absl::StatusCode::kDataLoss)
        << name;
    Write(name, whole);
  }
  ASSERT_EQ(files_.Remove(JoinPath(kStep, manifest_.files(1).name())), absl::OkStatus());
  EXPECT_THAT(std::string(Load().message()), HasSubstr("rank-00001.safetensors is missing"));
}

}  // namespace
}  // namespace shoal
