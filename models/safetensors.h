// The safetensors format: eight bytes of header length, a JSON header, the tensors' bytes end to
// end (https://huggingface.co/docs/safetensors). Nothing of a file is trusted: whatever its bytes,
// opening it gives tensors that lie inside it, or one line saying what is wrong. Files are read
// with pread, never mapped: a mapped file that shrinks would kill the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/file_system.h"
#include "core/parameter.h"
#include "core/status.h"

namespace shoal {

// One tensor of a file.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // In the format's words: "F32", "BF16"
  std::vector<int64_t> shape = {};
  int64_t begin = 0;  // First byte, from the start of the data
  int64_t end = 0;

  int64_t numel() const;
};

// The format's word for a dtype, and back; "" and nullopt for those without a counterpart.
std::string SafetensorsDtype(at::ScalarType dtype);
std::optional<at::ScalarType> DtypeOfSafetensors(absl::string_view dtype);

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // In the order of their bytes
  std::map<std::string, std::string> metadata;
  int64_t data_offset = 0;  // Of the data in the file
};

// Parses the JSON header of a file whose tensors take `data_bytes`. Stricter than the reference
// reader: a name twice, keys besides dtype, shape and data_offsets, more than 16 dimensions, 10^6
// tensors or 512 bytes a name are refused too. `file` stands in errors.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& json,
                                                         int64_t data_bytes,
                                                         const std::string& file);

// Headers longer than this are refused, as by the reference reader.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// Thread-safe.
class SafetensorsReader {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> Open(FileSystem& files,
                                                                 const std::string& path);

  const SafetensorsHeader& header() const { return header_; }
  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const std::string& path() const { return path_; }
  // nullptr if there is none.
  const SafetensorsEntry* Find(const std::string& name) const;

  // Fills contiguous `out` (any shape and device) with elements [first, first + out.numel()) of the
  // flattened tensor, converted to out's dtype. Of a tensor whose dtype ATen lacks: Unimplemented.
  absl::Status Read(const SafetensorsEntry& entry, int64_t first, Tensor& out) const;

  int64_t bytes_read() const { return bytes_read_.load(std::memory_order_relaxed); }

 private:
  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  SafetensorsHeader header_;
  std::map<std::string, size_t> index_;
  mutable std::atomic<int64_t> bytes_read_{0};
};

// Places of tensors in a file that is to be written, in the reference writer's order (widest dtype
// first, then by name), so that files are equal to its byte for byte. begin and end of `tensors`
// are filled in; names must differ and dtypes be known.
struct SafetensorsLayout {
  std::string head;  // The header's length and the header: the file's first bytes
  std::vector<SafetensorsEntry> tensors;
  int64_t file_bytes = 0;
};
SafetensorsLayout LayOutSafetensors(std::vector<SafetensorsEntry> tensors,
                                    const std::map<std::string, std::string>& metadata);

// Writes contiguous elements [first, first + values.numel()) of a tensor, converted to its dtype,
// to their place in a file that `layout` describes.
absl::Status WriteSafetensorsSlice(WritableFile& file, const SafetensorsLayout& layout,
                                   const SafetensorsEntry& entry, int64_t first,
                                   const Tensor& values);

// A whole file at once, synced. Tensors are named by the map.
absl::Status WriteSafetensors(FileSystem& files, const std::string& path,
                              const std::map<std::string, Tensor>& tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace shoal
