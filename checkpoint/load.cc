#include <algorithm>
#include <cstring>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "absl/strings/str_join.h"

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/save_plan.h"
#include "checkpoint/shard.h"
#include "core/offload.h"
#include "models/safetensors.h"

namespace shoal {
namespace {

using TensorIndex = std::unordered_map<std::string, const Manifest::Tensor*>;

std::string ShapeText(const google::protobuf::RepeatedField<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

// Lines of one kind of mismatch: all tensors, up to a number that a reader can take in.
class Complaints {
 public:
  void Add(std::string line) {
    if (seen_.insert(line).second && lines_.size() < kMaxLines) lines_.push_back(std::move(line));
  }
  bool empty() const { return seen_.empty(); }
  std::string Text() const {
    std::string text = absl::StrJoin(lines_, "\n  ");
    if (seen_.size() > lines_.size())
      absl::StrAppend(&text, "\n  and ", seen_.size() - lines_.size(), " more");
    return text;
  }

 private:
  static constexpr size_t kMaxLines = 50;
  std::vector<std::string> lines_;
  std::unordered_set<std::string> seen_;
};

// Why `piece` cannot be read from `tensor`, or "".
std::string Mismatch(const PieceList::Piece& piece, const Manifest::Tensor& tensor) {
  if (!std::equal(piece.shape().begin(), piece.shape().end(), tensor.shape().begin(),
                  tensor.shape().end())) {
    return absl::StrCat(piece.name(), ": shape ", ShapeText(tensor.shape()), " in the checkpoint, ",
                        ShapeText(piece.shape()), " wanted");
  }
  if (!piece.dtype().empty() && piece.dtype() != tensor.dtype()) {
    return absl::StrCat(piece.name(), ": ", tensor.dtype(), " in the checkpoint, ", piece.dtype(),
                        " wanted");
  }
  if (piece.begin() < 0 || piece.begin() > piece.end() ||
      piece.end() > *CheckedNumel(tensor.shape())) {
    return absl::StrCat(piece.name(), ": elements [", piece.begin(), ", ", piece.end(),
                        ") wanted of shape ", ShapeText(tensor.shape()));
  }
  return "";
}

// Compares what all ranks want with what there is; the same answer on every rank.
absl::Status CheckWanted(const TensorIndex& index, absl::Span<const PieceList> wanted,
                         UnreadTensors unread) {
  Complaints complaints;
  std::unordered_set<std::string> names;
  for (const PieceList& list : wanted) {
    for (const PieceList::Piece& piece : list.pieces()) {
      names.insert(piece.name());
      const auto found = index.find(piece.name());
      const std::string complaint = found == index.end()
                                        ? absl::StrCat(piece.name(), ": not in the checkpoint")
                                        : Mismatch(piece, *found->second);
      if (!complaint.empty()) complaints.Add(complaint);
    }
  }
  if (unread == UnreadTensors::kRefuse) {
    for (const auto& [name, tensor] : index) {
      if (names.count(name) == 0)
        complaints.Add(absl::StrCat(name, ": in the checkpoint, but not wanted"));
    }
  }
  if (complaints.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the checkpoint's tensors are not this run's:\n  ", complaints.Text()));
}

// Reads elements of tensors out of the files of one checkpoint.
class Reader {
 public:
  Reader(FileSystem& files, const std::string& folder, const Manifest& manifest)
      : files_(files), folder_(folder), manifest_(manifest), open_(manifest.files_size()) {}

  // Fills piece.data from the chunks of `tensor` that meet it.
  absl::Status Fill(const Manifest::Tensor& tensor, const StatePiece& piece) {
    if (!piece.data.defined() || piece.data.numel() == 0) return absl::OkStatus();
    // Next pieces are often of the same memory.
    hold_.Only(piece.data, OffloadAccess::kUpdate);
    at::Tensor flat = piece.data.view({-1});
    const int64_t end = piece.begin + flat.numel();
    const auto& chunks = tensor.chunks();
    auto chunk = std::partition_point(chunks.begin(), chunks.end(), [&](const Manifest::Chunk& c) {
      return c.end() <= piece.begin;
    });
    for (; chunk != chunks.end() && chunk->begin() < end; ++chunk) {
      SHOAL_RETURN_IF_ERROR(FillFromChunk(tensor, *chunk, piece.begin, flat));
    }
    return absl::OkStatus();
  }

 private:
  // flat: elements [begin, begin + flat.numel()) of the tensor.
  absl::Status FillFromChunk(const Manifest::Tensor& tensor, const Manifest::Chunk& chunk,
                             int64_t begin, at::Tensor& flat) {
    const int64_t from = std::max(begin, chunk.begin()),
                  to = std::min(begin + flat.numel(), chunk.end());
    at::Tensor target = flat.slice(0, from - begin, to - begin);
    if (from == chunk.begin() && to == chunk.end() && target.is_cpu()) {
      return Read(tensor, chunk,
                  absl::MakeSpan(static_cast<char*>(target.mutable_data_ptr()), target.nbytes()));
    }
    if (buffered_ != &chunk) {
      buffered_ = nullptr;
      buffer_.resize((chunk.end() - chunk.begin()) * target.element_size());
      SHOAL_RETURN_IF_ERROR(Read(tensor, chunk, absl::MakeSpan(buffer_)));
      buffered_ = &chunk;
    }
    const at::Tensor source = at::from_blob(buffer_.data(), {chunk.end() - chunk.begin()},
                                            at::TensorOptions().dtype(target.scalar_type()));
    target.copy_(source.slice(0, from - chunk.begin(), to - chunk.begin()));
    return absl::OkStatus();
  }

  absl::Status Read(const Manifest::Tensor& tensor, const Manifest::Chunk& chunk,
                    absl::Span<char> out) {
    const Manifest::File& record = manifest_.files(chunk.file());
    std::unique_ptr<ReadableFile>& file = open_[chunk.file()];
    if (!file) {
      SHOAL_ASSIGN_OR_RETURN(file, OpenShard(files_, folder_, record));
    }
    return ReadChunk(*file, record, tensor, chunk, out);
  }

  FileSystem& files_;
  const std::string& folder_;
  const Manifest& manifest_;
  std::vector<std::unique_ptr<ReadableFile>>
      open_;  // one a file of the manifest, opened when needed
  // The last chunk that was not read in place: the next piece of the tensor often needs it too.
  const Manifest::Chunk* buffered_ = nullptr;
  std::vector<char> buffer_;
  OffloadHold hold_;
};

absl::StatusOr<std::string> ReadManifestBytes(FileSystem& files, const std::string& folder) {
  const std::string path = JoinPath(folder, kManifestName);
  auto bytes = ReadFile(files, path, kMaxManifestBytes);
  if (!absl::IsNotFound(bytes.status())) return bytes;
  return absl::NotFoundError(absl::StrCat(folder, " is no checkpoint: it has no ", kManifestName));
}

absl::StatusOr<TrainerState> Load(FileSystem& files, Communicator& comm, const std::string& folder,
                                  const std::vector<StatePiece>& wanted, UnreadTensors unread) {
  const bool leads = comm.rank() == 0;
  SHOAL_ASSIGN_OR_RETURN(const auto manifests,
                         AgreeAndGather(comm, Guarded([&]() -> absl::StatusOr<std::string> {
                                          return leads ? ReadManifestBytes(files, folder)
                                                       : std::string();
                                        })));
  SHOAL_ASSIGN_OR_RETURN(const auto described,
                         AgreeAndGather(comm, Guarded([&]() -> absl::StatusOr<std::string> {
                                          SHOAL_ASSIGN_OR_RETURN(const PieceList list,
                                                                 DescribePieces(wanted));
                                          return list.SerializeAsString();
                                        })));
  // From here to the last agreement all ranks compute the same, errors included.
  SHOAL_ASSIGN_OR_RETURN(const Manifest manifest, DecodeManifest(manifests[0]));
  TensorIndex index;
  for (const Manifest::Tensor& tensor : manifest.tensors()) index[tensor.name()] = &tensor;
  std::vector<PieceList> lists(described.size());
  for (size_t rank = 0; rank < lists.size(); ++rank) {
    if (!lists[rank].ParseFromString(described[rank]))
      return absl::InternalError("a rank's pieces do not parse");
  }
  SHOAL_RETURN_IF_ERROR(CheckWanted(index, lists, unread));

  SHOAL_RETURN_IF_ERROR(Agree(comm, Guarded([&]() -> absl::Status {
                                Reader reader(files, folder, manifest);
                                for (const StatePiece& piece : wanted)
                                  SHOAL_RETURN_IF_ERROR(reader.Fill(*index.at(piece.name), piece));
                                return absl::OkStatus();
                              })));
  return manifest.state();
}

}  // namespace

absl::StatusOr<Manifest> ReadManifest(FileSystem& files, const std::string& step_directory) {
  SHOAL_ASSIGN_OR_RETURN(const std::string bytes, ReadManifestBytes(files, step_directory));
  auto manifest = DecodeManifest(bytes);
  if (!manifest.ok()) return Annotate(manifest.status(), step_directory);
  return manifest;
}

absl::StatusOr<TrainerState> LoadCheckpoint(FileSystem& files, Communicator& comm,
                                            const std::string& step_directory,
                                            const std::vector<StatePiece>& wanted,
                                            UnreadTensors unread) {
  auto state = Load(files, comm, step_directory, wanted, unread);
  if (!state.ok()) return Annotate(state.status(), absl::StrCat("cannot load ", step_directory));
  return state;
}

}  // namespace shoal
