#include "checkpoint/shard.h"

#include <map>

#include "core/crc32c.h"
#include "core/offload.h"
#include "models/safetensors.h"

namespace shoal {
namespace {

// Appends the elements of `data` and records their chunks, the first at byte `offset` of the file.
absl::Status WritePiece(WritableFile& file, const StatePiece& piece, int64_t offset,
                        int64_t chunk_bytes, Manifest::Tensor* record) {
  const int64_t element_bytes = static_cast<int64_t>(piece.data.element_size());
  const int64_t chunk_numel = std::max<int64_t>(1, chunk_bytes / element_bytes);
  const at::Tensor flat = piece.data.reshape({-1});
  for (int64_t begin = 0; begin < flat.numel(); begin += chunk_numel) {
    const int64_t end = std::min(begin + chunk_numel, flat.numel());
    const at::Tensor host = flat.slice(0, begin, end).cpu();
    const absl::string_view bytes(static_cast<const char*>(host.const_data_ptr()), host.nbytes());
    Manifest::Chunk* chunk = record->add_chunks();
    chunk->set_begin(piece.begin + begin);
    chunk->set_end(piece.begin + end);
    chunk->set_offset(offset + begin * element_bytes);
    chunk->set_crc32c(Crc32c(bytes));
    SHOAL_RETURN_IF_ERROR(file.Append(bytes));
  }
  return absl::OkStatus();
}

SafetensorsLayout LayOut(absl::Span<const StatePiece> pieces, absl::Span<const PlannedPiece> plan) {
  std::vector<SafetensorsEntry> entries;
  for (const PlannedPiece& planned : plan) {
    SafetensorsEntry entry;
    entry.name = planned.entry_name;
    entry.dtype = SafetensorsDtype(pieces[planned.piece].data.scalar_type());
    entry.shape = planned.entry_shape;
    entries.push_back(std::move(entry));
  }
  return LayOutSafetensors(std::move(entries), {{"format", "pt"}});
}

}  // namespace

absl::StatusOr<ShardRecord> WriteShard(FileSystem& files, const std::string& folder,
                                       const std::string& name, absl::Span<const StatePiece> pieces,
                                       absl::Span<const PlannedPiece> plan, int64_t chunk_bytes) {
  std::map<std::string, const StatePiece*> piece_of;
  for (const PlannedPiece& planned : plan) piece_of[planned.entry_name] = &pieces[planned.piece];
  const SafetensorsLayout layout = LayOut(pieces, plan);

  SHOAL_ASSIGN_OR_RETURN(const auto file,
                         files.OpenForWrite(JoinPath(folder, name), OpenMode::kCreateNew));
  SHOAL_RETURN_IF_ERROR(file->Append(layout.head));
  ShardRecord shard;
  OffloadHold hold;
  for (const SafetensorsEntry& entry : layout.tensors) {
    const StatePiece& piece = *piece_of.at(entry.name);
    hold.Only(piece.data, OffloadAccess::kRead);
    Manifest::Tensor* record = shard.add_tensors();
    record->set_name(piece.name);
    record->set_dtype(entry.dtype);
    for (const int64_t size : piece.shape) record->add_shape(size);
    const int64_t offset = static_cast<int64_t>(layout.head.size()) + entry.begin;
    SHOAL_RETURN_IF_ERROR(WritePiece(*file, piece, offset, chunk_bytes, record));
  }
  SHOAL_RETURN_IF_ERROR(file->Sync());
  SHOAL_RETURN_IF_ERROR(file->Close());

  shard.mutable_file()->set_name(name);
  shard.mutable_file()->set_bytes(layout.file_bytes);
  shard.mutable_file()->set_header_bytes(static_cast<int64_t>(layout.head.size()));
  shard.mutable_file()->set_header_crc32c(Crc32c(layout.head));
  return shard;
}

absl::StatusOr<std::unique_ptr<ReadableFile>> OpenShard(FileSystem& files,
                                                        const std::string& folder,
                                                        const Manifest::File& record) {
  const std::string path = JoinPath(folder, record.name());
  auto file = files.OpenForRead(path);
  if (absl::IsNotFound(file.status()))
    return absl::DataLossError(absl::StrCat(path, " is missing"));
  if (!file.ok()) return file.status();
  SHOAL_ASSIGN_OR_RETURN(const int64_t bytes, (*file)->Size());
  if (bytes != record.bytes()) {
    return absl::DataLossError(absl::StrCat(path, " has ", bytes, " bytes, not ", record.bytes()));
  }
  std::string head(record.header_bytes(), '\0');
  SHOAL_RETURN_IF_ERROR((*file)->ReadAt(0, absl::MakeSpan(head)));
  if (Crc32c(head) != record.header_crc32c()) {
    return absl::DataLossError(
        absl::StrCat(path, " is damaged: its header does not match its checksum"));
  }
  return file;
}

absl::Status ReadChunk(const ReadableFile& file, const Manifest::File& record,
                       const Manifest::Tensor& tensor, const Manifest::Chunk& chunk,
                       absl::Span<char> out) {
  SHOAL_RETURN_IF_ERROR(file.ReadAt(chunk.offset(), out));
  if (Crc32c(absl::string_view(out.data(), out.size())) == chunk.crc32c()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "tensor ", tensor.name(), " is damaged: elements [", chunk.begin(), ", ", chunk.end(),
      ") in ", record.name(), " at byte ", chunk.offset(), " do not match their checksum"));
}

}  // namespace shoal
