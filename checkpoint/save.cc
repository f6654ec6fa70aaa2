#include <algorithm>
#include <map>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/save_plan.h"
#include "checkpoint/shard.h"

namespace shoal {
namespace {

constexpr absl::string_view kTemporaryPrefix = ".tmp-step-";
constexpr absl::string_view kTrashPrefix = ".trash-step-";

bool StartsWith(absl::string_view text, absl::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// Differs from every other attempt's, also of a run that died and came back.
std::string AttemptName(int64_t step) {
  std::random_device device;
  return absl::StrFormat("%s%d-%08x%08x", kTemporaryPrefix, step, device(), device());
}

// What saves and removals that died have left.
absl::Status Sweep(FileSystem& files, const std::string& directory) {
  SHOAL_ASSIGN_OR_RETURN(const auto names, files.List(directory));
  for (const std::string& name : names) {
    if (!StartsWith(name, kTemporaryPrefix) && !StartsWith(name, kTrashPrefix)) continue;
    SHOAL_RETURN_IF_ERROR(RemoveRecursively(files, JoinPath(directory, name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<Manifest> Assemble(const TrainerState& state, absl::Span<const std::string> shards) {
  Manifest manifest;
  *manifest.mutable_state() = state;
  std::map<std::string, Manifest::Tensor> tensors;
  for (const std::string& serialized : shards) {
    ShardRecord shard;
    if (!shard.ParseFromString(serialized))
      return absl::InternalError("a rank's record does not parse");
    const int file = manifest.files_size();
    *manifest.add_files() = shard.file();
    for (Manifest::Tensor& written : *shard.mutable_tensors()) {
      for (Manifest::Chunk& chunk : *written.mutable_chunks()) chunk.set_file(file);
      const auto [entry, is_new] = tensors.try_emplace(written.name(), written);
      if (!is_new) entry->second.mutable_chunks()->MergeFrom(written.chunks());
    }
  }
  for (auto& [name, tensor] : tensors) {
    std::sort(tensor.mutable_chunks()->begin(), tensor.mutable_chunks()->end(),
              [](const auto& a, const auto& b) { return a.begin() < b.begin(); });
    *manifest.add_tensors() = std::move(tensor);
  }
  SHOAL_RETURN_IF_ERROR(CheckManifest(manifest));
  return manifest;
}

absl::Status WriteManifest(FileSystem& files, const std::string& folder, const Manifest& manifest) {
  const std::string bytes = EncodeManifest(manifest);
  if (static_cast<int64_t>(bytes.size()) > kMaxManifestBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the manifest has ", bytes.size(),
                                                     " bytes, more than the ", kMaxManifestBytes,
                                                     " that can be read"));
  }
  SHOAL_ASSIGN_OR_RETURN(const auto file,
                         files.OpenForWrite(JoinPath(folder, kManifestName), OpenMode::kCreateNew));
  SHOAL_RETURN_IF_ERROR(file->Append(bytes));
  SHOAL_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

// Makes the finished folder the step's. Afterwards `temporary` holds what it replaced, if anything.
absl::Status Publish(FileSystem& files, const std::string& directory, const std::string& temporary,
                     const std::string& step_folder) {
  SHOAL_RETURN_IF_ERROR(files.SyncDirectory(temporary));
  SHOAL_ASSIGN_OR_RETURN(const bool replaces, Exists(files, step_folder));
  SHOAL_RETURN_IF_ERROR(replaces ? files.Exchange(temporary, step_folder)
                                 : files.Rename(temporary, step_folder));
  return files.SyncDirectory(directory);
}

// Removes all but the newest `limit` steps up to `step`. The name goes first, so that a removal
// that dies leaves no half step.
absl::Status Retire(FileSystem& files, const std::string& directory, int64_t step,
                    const SaveOptions& options) {
  SHOAL_ASSIGN_OR_RETURN(const auto names, files.List(directory));
  std::vector<int64_t> steps;
  for (const std::string& name : names) {
    const auto found = StepOfName(name);
    if (!found) continue;
    if (*found <= step) {
      steps.push_back(*found);
    } else if (options.warn) {
      options.warn(absl::StrCat(
          JoinPath(directory, name), " is of a later step than this run's ", step,
          ": an automatic resume would take it; move it away if its run is abandoned"));
    }
  }
  std::sort(steps.rbegin(), steps.rend());
  for (size_t i = std::max(options.save_total_limit, 1); i < steps.size(); ++i) {
    const std::string trash = JoinPath(directory, absl::StrCat(kTrashPrefix, steps[i]));
    SHOAL_RETURN_IF_ERROR(RemoveRecursively(files, trash));
    SHOAL_RETURN_IF_ERROR(
        files.Rename(JoinPath(directory, absl::StrCat("step-", steps[i])), trash));
    SHOAL_RETURN_IF_ERROR(files.SyncDirectory(directory));
    SHOAL_RETURN_IF_ERROR(RemoveRecursively(files, trash));
  }
  return absl::OkStatus();
}

// One call of SaveCheckpoint on one rank. Each phase ends with an agreement of all ranks.
class Save {
 public:
  Save(FileSystem& files, Communicator& comm, const std::string& directory,
       const TrainerState& state, const std::vector<StatePiece>& pieces, const SaveOptions& options)
      : files_(files),
        comm_(comm),
        directory_(directory),
        state_(state),
        pieces_(pieces),
        options_(options) {}

  absl::Status Run() {
    SHOAL_RETURN_IF_ERROR(Plan());
    SHOAL_RETURN_IF_ERROR(MakeFolder());
    SHOAL_ASSIGN_OR_RETURN(const auto shards, WriteShards());
    SHOAL_RETURN_IF_ERROR(Commit(shards));
    if (comm_.rank() == 0) Tidy();
    return absl::OkStatus();
  }

 private:
  // Makes plan_ and temporary_, the same on all ranks.
  absl::Status Plan() {
    const auto announced = AgreeAndGather(comm_, Guarded([&] { return Announcement(); }));
    SHOAL_RETURN_IF_ERROR(announced.status());
    std::vector<PieceList> held(announced->size());
    for (size_t rank = 0; rank < held.size(); ++rank) {
      if (!held[rank].ParseFromString((*announced)[rank]))
        return absl::InternalError("a rank's pieces do not parse");
      if (held[rank].step() == held[0].step()) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", rank, " saves step ", held[rank].step(), ", rank 0 step ", held[0].step()));
    }
    temporary_ = JoinPath(directory_, held[0].attempt());
    SHOAL_ASSIGN_OR_RETURN(plan_, PlanSave(held));
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Announcement() const {
    if (state_.step() < 0) return absl::InvalidArgumentError("steps count from 0");
    SHOAL_ASSIGN_OR_RETURN(PieceList list, DescribePieces(pieces_));
    list.set_step(state_.step());
    if (comm_.rank() == 0) list.set_attempt(AttemptName(state_.step()));
    return list.SerializeAsString();
  }

  absl::Status MakeFolder() {
    return OnFirstRank([&]() -> absl::Status {
      SHOAL_RETURN_IF_ERROR(CreateDirectories(files_, directory_));
      Warn(Annotate(Sweep(files_, directory_), "leftovers of an earlier save stay"));
      return files_.CreateDirectory(temporary_);
    });
  }

  // Every rank's ShardRecord.
  absl::StatusOr<std::vector<std::string>> WriteShards() {
    auto shards = AgreeAndGather(
        comm_, Guarded([&]() -> absl::StatusOr<std::string> {
          const std::string name = absl::StrFormat("rank-%05d.safetensors", comm_.rank());
          SHOAL_ASSIGN_OR_RETURN(const ShardRecord shard,
                                 WriteShard(files_, temporary_, name, pieces_, plan_[comm_.rank()],
                                            options_.chunk_bytes));
          return shard.SerializeAsString();
        }));
    // A full disk gets its space back at once; the status stays the first one.
    if (!shards.ok() && comm_.rank() == 0) Warn(RemoveRecursively(files_, temporary_));
    return shards;
  }

  absl::Status Commit(const std::vector<std::string>& shards) {
    return OnFirstRank([&]() -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(const Manifest manifest, Assemble(state_, shards));
      SHOAL_RETURN_IF_ERROR(WriteManifest(files_, temporary_, manifest));
      return Publish(files_, directory_, temporary_,
                     JoinPath(directory_, absl::StrCat("step-", state_.step())));
    });
  }

  // After the commit nothing is an error: the step is there.
  void Tidy() const {
    const auto saved = absl::StrCat("step-", state_.step(), " is saved, but");
    Warn(Annotate(RemoveRecursively(files_, temporary_),
                  saved));  // holds what this step replaced, if anything
    Warn(Annotate(Retire(files_, directory_, state_.step(), options_), saved));
  }

  template <typename Work>
  absl::Status OnFirstRank(const Work& work) {
    return Agree(comm_, comm_.rank() == 0 ? Guarded(work) : absl::OkStatus());
  }

  void Warn(const absl::Status& status) const {
    if (!status.ok() && options_.warn) options_.warn(std::string(status.message()));
  }

  FileSystem& files_;
  Communicator& comm_;
  const std::string& directory_;
  const TrainerState& state_;
  const std::vector<StatePiece>& pieces_;
  const SaveOptions& options_;
  std::vector<std::vector<PlannedPiece>> plan_;
  std::string temporary_;
};

}  // namespace

std::optional<int64_t> StepOfName(const std::string& name) {
  constexpr absl::string_view kPrefix = "step-";
  int64_t step;
  if (!StartsWith(name, kPrefix) ||
      !absl::SimpleAtoi(absl::string_view(name).substr(kPrefix.size()), &step)) {
    return std::nullopt;
  }
  // Not "step-020" or "step-+20": a step has one name.
  return absl::StrCat(kPrefix, step) == name && step >= 0 ? std::optional(step) : std::nullopt;
}

absl::Status SaveCheckpoint(FileSystem& files, Communicator& comm, const std::string& directory,
                            const TrainerState& state, const std::vector<StatePiece>& pieces,
                            const SaveOptions& options) {
  return Annotate(Save(files, comm, directory, state, pieces, options).Run(),
                  absl::StrCat("cannot save step ", state.step()));
}

}  // namespace shoal
