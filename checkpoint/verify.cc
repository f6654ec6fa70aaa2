#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/shard.h"
#include "core/dtype.h"
#include "models/safetensors.h"
#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

// Which of a checkpoint's files one rank looks at: those whose index is `rank` modulo `ranks`.
struct Part {
  int rank = 0;
  int ranks = 1;
};

absl::Status VerifyFiles(FileSystem& files, const std::string& folder, const Manifest& manifest,
                         VerifyLevel level, Part part) {
  std::vector<std::unique_ptr<ReadableFile>> open(manifest.files_size());
  for (int i = part.rank; i < manifest.files_size(); i += part.ranks) {
    SHOAL_ASSIGN_OR_RETURN(open[i], OpenShard(files, folder, manifest.files(i)));
  }
  if (level == VerifyLevel::kSizes) return absl::OkStatus();
  std::vector<char> buffer;
  for (const Manifest::Tensor& tensor : manifest.tensors()) {
    const int64_t element_bytes = ElementBytes(*DtypeOfSafetensors(tensor.dtype()));
    for (const Manifest::Chunk& chunk : tensor.chunks()) {
      if (!open[chunk.file()]) continue;
      buffer.resize((chunk.end() - chunk.begin()) * element_bytes);
      SHOAL_RETURN_IF_ERROR(ReadChunk(*open[chunk.file()], manifest.files(chunk.file()), tensor,
                                      chunk, absl::MakeSpan(buffer)));
    }
  }
  return absl::OkStatus();
}

absl::Status Verify(FileSystem& files, const std::string& folder, VerifyLevel level, Part part) {
  return Guarded([&]() -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(files, folder));
    return VerifyFiles(files, folder, manifest, level, part);
  });
}

// The steps in `directory`, newest first; none if it is missing.
absl::StatusOr<std::vector<int64_t>> Steps(FileSystem& files, const std::string& directory) {
  std::vector<int64_t> steps;
  const auto names = files.List(directory);
  if (absl::IsNotFound(names.status())) return steps;
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (const auto step = StepOfName(name)) steps.push_back(*step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

// A folder that someone renamed would make the run go on from another step than it says.
absl::Status CheckStep(FileSystem& files, const std::string& folder, int64_t step) {
  SHOAL_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(files, folder));
  if (manifest.state().step() == step) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(folder, " holds step ", manifest.state().step()));
}

}  // namespace

absl::Status VerifyCheckpoint(FileSystem& files, const std::string& step_directory,
                              VerifyLevel level) {
  return Verify(files, step_directory, level, Part{});
}

absl::StatusOr<std::optional<std::string>> FindNewestValid(FileSystem& files,
                                                           const std::string& directory,
                                                           std::vector<std::string>* skipped,
                                                           VerifyLevel level) {
  const auto alone = MakeSingleRankCommunicator();
  return FindNewestValid(files, *alone, directory, skipped, level);
}

absl::StatusOr<std::optional<std::string>> FindNewestValid(FileSystem& files, Communicator& comm,
                                                           const std::string& directory,
                                                           std::vector<std::string>* skipped,
                                                           VerifyLevel level) {
  // Rank 0's list, so that all look at the same steps.
  SHOAL_ASSIGN_OR_RETURN(const auto lists,
                         AgreeAndGather(comm, Guarded([&]() -> absl::StatusOr<std::string> {
                                          if (comm.rank() != 0) return std::string();
                                          SHOAL_ASSIGN_OR_RETURN(const auto steps,
                                                                 Steps(files, directory));
                                          return absl::StrJoin(steps, ",");
                                        })));
  for (absl::string_view text : absl::StrSplit(lists[0], ',', absl::SkipEmpty())) {
    int64_t step = 0;
    SHOAL_CHECK(absl::SimpleAtoi(text, &step)) << text;
    const std::string folder = JoinPath(directory, absl::StrCat("step-", step));
    absl::Status mine = comm.rank() == 0 ? Guarded([&] { return CheckStep(files, folder, step); })
                                         : absl::OkStatus();
    if (mine.ok()) mine = Verify(files, folder, level, {.rank = comm.rank(), .ranks = comm.size()});
    const absl::Status all = Agree(comm, mine);
    if (all.ok()) return std::optional<std::string>(folder);
    if (skipped) skipped->push_back(absl::StrCat("skipped step-", step, ": ", all.message()));
  }
  return std::optional<std::string>();
}

}  // namespace shoal
