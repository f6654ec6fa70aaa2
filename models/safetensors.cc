#include "models/safetensors.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/dtype.h"

namespace shoal {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;  // Converted at a time

absl::Span<char> BytesOf(const Tensor& tensor) {
  return {static_cast<char*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

// Bytes of one element of a dtype that this program has.

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::Open(
    FileSystem& files, const std::string& path) {
  auto reader = std::make_unique<SafetensorsReader>();
  reader->path_ = path;
  SHOAL_ASSIGN_OR_RETURN(reader->file_, files.OpenForRead(path));
  SHOAL_ASSIGN_OR_RETURN(const int64_t size, reader->file_->Size());
  const auto refuse = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a safetensors file: ", parts...));
  };
  if (size < 8) return refuse("it has ", size, " bytes");
  unsigned char length_bytes[8];
  SHOAL_RETURN_IF_ERROR(reader->file_->ReadAt(0, {reinterpret_cast<char*>(length_bytes), 8}));
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<uint64_t>(length_bytes[i]) << (8 * i);
  if (length > kMaxSafetensorsHeaderBytes || static_cast<int64_t>(length) > size - 8) {
    return refuse("its header claims ", length, " bytes, the file has ", size, " and the limit is ",
                  kMaxSafetensorsHeaderBytes);
  }
  std::string json(length, '\0');
  SHOAL_RETURN_IF_ERROR(reader->file_->ReadAt(8, absl::MakeSpan(json)));
  const int64_t data_offset = 8 + static_cast<int64_t>(length);
  SHOAL_ASSIGN_OR_RETURN(reader->header_, ParseSafetensorsHeader(json, size - data_offset, path));
  reader->header_.data_offset = data_offset;
  for (size_t i = 0; i < reader->tensors().size(); ++i)
    reader->index_[reader->tensors()[i].name] = i;
  return reader;
}

const SafetensorsEntry* SafetensorsReader::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

absl::Status SafetensorsReader::Read(const SafetensorsEntry& entry, int64_t first,
                                     Tensor& out) const {
  const std::optional<at::ScalarType> dtype = DtypeOfSafetensors(entry.dtype);
  if (!dtype) {
    return absl::UnimplementedError(absl::StrCat(path_, ": ", entry.name, " has dtype ",
                                                 entry.dtype,
                                                 ", which Shoal does not compute with"));
  }
  SHOAL_CHECK(out.is_contiguous() && first >= 0 && out.numel() <= entry.numel() - first)
      << entry.name << ": elements [" << first << ", " << first + out.numel() << ") of "
      << entry.numel();
  const int64_t element = ElementBytes(*dtype);
  const int64_t offset = header_.data_offset + entry.begin;
  const auto read = [&](int64_t begin, const Tensor& target) -> absl::Status {
    bytes_read_.fetch_add(target.nbytes(), std::memory_order_relaxed);
    return Annotate(file_->ReadAt(offset + begin * element, BytesOf(target)),
                    absl::StrCat("reading ", entry.name));
  };
  if (out.scalar_type() == *dtype && out.is_cpu()) return read(first, out);

  Tensor flat = out.detach().view({-1});
  const int64_t chunk = std::max<int64_t>(1, kChunkBytes / element);
  Tensor buffer = at::empty({std::min(chunk, flat.numel())}, at::TensorOptions(*dtype));
  for (int64_t begin = 0; begin < flat.numel(); begin += chunk) {
    const Tensor piece = buffer.narrow(0, 0, std::min(chunk, flat.numel() - begin));
    SHOAL_RETURN_IF_ERROR(read(first + begin, piece));
    flat.narrow(0, begin, piece.numel()).copy_(piece);
  }
  return absl::OkStatus();
}

absl::Status WriteSafetensorsSlice(WritableFile& file, const SafetensorsLayout& layout,
                                   const SafetensorsEntry& entry, int64_t first,
                                   const Tensor& values) {
  const at::ScalarType dtype = *DtypeOfSafetensors(entry.dtype);
  SHOAL_CHECK(values.is_contiguous() && first >= 0 && values.numel() <= entry.numel() - first)
      << entry.name << ": elements [" << first << ", " << first + values.numel() << ") of "
      << entry.numel();
  const int64_t element = ElementBytes(dtype);
  const int64_t offset = static_cast<int64_t>(layout.head.size()) + entry.begin + first * element;
  const Tensor flat = values.detach().view({-1});
  const bool as_is = flat.scalar_type() == dtype && flat.is_cpu();
  const int64_t chunk =
      as_is ? std::max<int64_t>(1, flat.numel()) : std::max<int64_t>(1, kChunkBytes / element);
  for (int64_t begin = 0; begin < flat.numel(); begin += chunk) {
    Tensor piece = flat.narrow(0, begin, std::min(chunk, flat.numel() - begin));
    if (!as_is) piece = piece.to(at::kCPU, dtype);
    const absl::Span<char> bytes = BytesOf(piece);
    SHOAL_RETURN_IF_ERROR(
        Annotate(file.WriteAt(offset + begin * element, {bytes.data(), bytes.size()}),
                 absl::StrCat("writing ", entry.name)));
  }
  return absl::OkStatus();
}

absl::Status WriteSafetensors(FileSystem& files, const std::string& path,
                              const std::map<std::string, Tensor>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) {
    const std::string dtype = SafetensorsDtype(tensor.scalar_type());
    if (dtype.empty())
      return absl::UnimplementedError(absl::StrCat("safetensors has no dtype for ", name));
    entries.push_back({.name = name, .dtype = dtype, .shape = tensor.sizes().vec()});
  }
  const SafetensorsLayout layout = LayOutSafetensors(std::move(entries), metadata);
  SHOAL_ASSIGN_OR_RETURN(auto file, files.OpenForWrite(path, OpenMode::kTruncate));
  SHOAL_RETURN_IF_ERROR(file->WriteAt(0, layout.head));
  for (const SafetensorsEntry& entry : layout.tensors) {
    SHOAL_RETURN_IF_ERROR(
        WriteSafetensorsSlice(*file, layout, entry, 0, tensors.at(entry.name).contiguous()));
  }
  SHOAL_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

}  // namespace shoal
