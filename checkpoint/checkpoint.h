// Sharded checkpoints that any number of ranks can read back, whatever number wrote them.
//
//   run/checkpoints/step-20/
//     MANIFEST                 the trainer's state, and where each tensor's elements lie, with
//     checksums rank-00000.safetensors   plain safetensors: the pieces that rank 0 wrote
//     ...
//
// A piece is a range of a flattened tensor. Each rank saves the pieces it holds and asks for those
// it wants; what ranges other ranks held then does not matter. Nothing is gathered: a rank needs at
// most one chunk (16 MiB) of memory beyond its own pieces.
//
// The order of a save is its contract: every file is written and synced in `.tmp-step-N-<attempt>`,
// then the manifest, then the folder; the rename to `step-N` is the commit, and the sync of
// `checkpoints/` makes it durable. At whatever call the disk, a process or the machine fails, a
// reader finds the old steps, or the old ones and the new one, whole. A reader takes nothing on
// trust: see manifest.h.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "checkpoint/checkpoint.pb.h"
#include "core/file_system.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// This rank's part of one tensor: elements [begin, begin + data.numel()) of the flattened tensor.
struct StatePiece {
  std::string name;  // Of the whole tensor, unique: "weights/model.norm.weight", "adam_m/..."
  std::vector<int64_t> shape;  // Of the whole tensor
  int64_t begin = 0;
  // Contiguous, of any shape, dtype and device; no elements: this rank has no part. Offloaded ones
  // (core/offload.h) are in memory one after another, while they are read or written.
  at::Tensor data;
};

struct SaveOptions {
  // Newest checkpoints kept, this one included; at least 1. Counted up to this step: checkpoints of
  // later steps (of an abandoned run) are never removed, but warned of.
  int save_total_limit = 2;
  // Told, on rank 0, of what went wrong after the commit (an old checkpoint that could not be
  // removed). May be empty.
  std::function<void(const std::string&)> warn;
  // Bytes a checksum covers, and the most that is read to get at one element.
  int64_t chunk_bytes = 16 << 20;
};

// Writes `directory`/step-<state.step()>, with `directory` made if it is missing. A piece that
// several ranks hold (data-parallel replicas) is written by one of them, chosen so that all write
// alike much. A step-N that is there already is replaced in one swap. Collective: every rank of
// `comm` calls it with equal `directory`, `state` and options, and all return the same status,
// naming the first rank that failed; after a failure no new step is visible (or, if the very last
// sync failed, a whole one). InvalidArgument: pieces that do not tile their tensors, or differ in
// dtype or shape. A failing collective throws CommError, here and below.
absl::Status SaveCheckpoint(FileSystem& files, Communicator& comm, const std::string& directory,
                            const TrainerState& state, const std::vector<StatePiece>& pieces,
                            const SaveOptions& options = {});

enum class UnreadTensors {
  kRefuse,  // a tensor in the checkpoint that no rank asks for is an error
  kAllow,   // for readers of a part: an export wants the weights alone
};

// Fills `wanted[i].data` from the checkpoint in folder `step_directory` and returns its trainer
// state. Every byte read is checked against its checksum. Collective: all return the same status;
// on an error the contents of `wanted` are undefined. FailedPrecondition: missing, extra or
// mismatching tensors, all listed by name. DataLoss: damage, with the tensor or file named.
absl::StatusOr<TrainerState> LoadCheckpoint(FileSystem& files, Communicator& comm,
                                            const std::string& step_directory,
                                            const std::vector<StatePiece>& wanted,
                                            UnreadTensors unread = UnreadTensors::kRefuse);

// The trainer's state and the tensors' places without the tensors. Not collective.
absl::StatusOr<Manifest> ReadManifest(FileSystem& files, const std::string& step_directory);

enum class VerifyLevel {
  kSizes,      // the manifest, the files' sizes and their headers
  kChecksums,  // and every byte
};

// DataLoss with the first damaged tensor or file named. Not collective.
absl::Status VerifyCheckpoint(FileSystem& files, const std::string& step_directory,
                              VerifyLevel level);

// The folder of the highest step in `directory` that verifies; nullopt: there is none, or no
// `directory`. For each newer step passed over, one line is added to `skipped`. Unfinished saves
// are not looked at. Not collective.
absl::StatusOr<std::optional<std::string>> FindNewestValid(
    FileSystem& files, const std::string& directory, std::vector<std::string>* skipped,
    VerifyLevel level = VerifyLevel::kChecksums);

// The same answer on every rank, the bytes to check dealt out over the ranks. Collective.
absl::StatusOr<std::optional<std::string>> FindNewestValid(
    FileSystem& files, Communicator& comm, const std::string& directory,
    std::vector<std::string>* skipped, VerifyLevel level = VerifyLevel::kChecksums);

// "step-20" -> 20; nullopt for any other name.
std::optional<int64_t> StepOfName(const std::string& name);

}  // namespace shoal
