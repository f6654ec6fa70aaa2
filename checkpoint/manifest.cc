#include "checkpoint/manifest.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "absl/strings/ascii.h"

#include "core/crc32c.h"
#include "core/dtype.h"
#include "models/safetensors.h"

namespace shoal {
namespace {

constexpr absl::string_view kMagic = "SHOALCKP";
constexpr uint32_t kVersion = 1;
constexpr size_t kFrameBytes = 8 + 4 + 4 + 8;

template <typename T>
std::string LittleEndian(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

template <typename T>
T FromLittleEndian(absl::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

bool IsPlainName(absl::string_view name) {
  if (name.empty() || name.size() > 128 || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

struct Span {
  int64_t begin, end;
};

// Appends to spans[file] where the chunks of `tensor` lie.
absl::Status CheckTensor(const Manifest::Tensor& tensor, std::vector<std::vector<Span>>* spans) {
  const auto damage = [&](const auto&... what) {
    return absl::DataLossError(absl::StrCat("manifest: tensor ", tensor.name(), " ", what...));
  };
  const auto dtype = DtypeOfSafetensors(tensor.dtype());
  if (!dtype) return damage("has unknown dtype \"", tensor.dtype(), "\"");
  const auto numel = CheckedNumel(tensor.shape());
  const int64_t element_bytes = ElementBytes(*dtype);
  if (!numel || *numel > (int64_t{1} << 60) / element_bytes)
    return damage("has an impossible shape");
  int64_t next = 0;
  for (const Manifest::Chunk& chunk : tensor.chunks()) {
    if (chunk.begin() != next || chunk.end() <= chunk.begin() || chunk.end() > *numel) {
      return damage("has elements [", chunk.begin(), ", ", chunk.end(), ") where ", next,
                    " should be next of ", *numel);
    }
    next = chunk.end();
    if (chunk.file() < 0 || chunk.file() >= static_cast<int64_t>(spans->size())) {
      return damage("is in file number ", chunk.file(), " of ", spans->size());
    }
    const int64_t bytes = (chunk.end() - chunk.begin()) * element_bytes;
    if (chunk.offset() < 0 || chunk.offset() > (int64_t{1} << 62))
      return damage("has offset ", chunk.offset());
    (*spans)[chunk.file()].push_back({chunk.offset(), chunk.offset() + bytes});
  }
  if (next != *numel) return damage("ends at element ", next, " of ", *numel);
  return absl::OkStatus();
}

absl::Status CheckFileSpans(const Manifest::File& file, std::vector<Span>& spans) {
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  int64_t next = file.header_bytes();
  for (const Span& span : spans) {
    if (span.begin != next) {
      return absl::DataLossError(absl::StrCat("manifest: file ", file.name(),
                                              " has a chunk at byte ", span.begin, " where ", next,
                                              " should be next"));
    }
    next = span.end;
  }
  if (next == file.bytes()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("manifest: file ", file.name(), " has ", file.bytes(),
                                          " bytes, its chunks end at ", next));
}

}  // namespace

std::string EncodeManifest(const Manifest& manifest) {
  const std::string message = manifest.SerializeAsString();
  const std::string version = LittleEndian(kVersion);
  const std::string length = LittleEndian<uint64_t>(message.size());
  const uint32_t crc = Crc32c(message, Crc32c(length, Crc32c(version)));
  return absl::StrCat(kMagic, version, LittleEndian(crc), length, message);
}

absl::StatusOr<Manifest> DecodeManifest(absl::string_view bytes) {
  if (bytes.size() < kFrameBytes || bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::DataLossError("the manifest does not begin as one");
  }
  const uint32_t version = FromLittleEndian<uint32_t>(bytes.substr(8));
  const uint64_t length = FromLittleEndian<uint64_t>(bytes.substr(16));
  const absl::string_view message = bytes.substr(kFrameBytes);
  const uint32_t crc = Crc32c(bytes.substr(16), Crc32c(bytes.substr(8, 4)));
  if (crc != FromLittleEndian<uint32_t>(bytes.substr(12))) {
    return absl::DataLossError("the manifest's checksum does not match its bytes");
  }
  if (version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the manifest has version ", version,
                                                      ", this program reads ", kVersion,
                                                      ": a newer Shoal wrote it"));
  }
  if (length != message.size()) {
    return absl::DataLossError(
        absl::StrCat("the manifest has ", message.size(), " bytes where it says ", length));
  }
  Manifest manifest;
  if (message.size() > kMaxManifestBytes ||
      !manifest.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
    return absl::DataLossError("the manifest's message does not parse");
  }
  SHOAL_RETURN_IF_ERROR(CheckManifest(manifest));
  return manifest;
}

absl::Status CheckManifest(const Manifest& manifest) {
  std::set<std::string> file_names, tensor_names;
  for (const Manifest::File& file : manifest.files()) {
    if (!IsPlainName(file.name()) || !file_names.insert(file.name()).second) {
      return absl::DataLossError(
          absl::StrCat("manifest: bad or repeated file name \"", file.name(), "\""));
    }
    if (file.header_bytes() < 8 || file.header_bytes() > 8 + kMaxSafetensorsHeaderBytes ||
        file.bytes() < file.header_bytes()) {
      return absl::DataLossError(absl::StrCat("manifest: file ", file.name(), " has ", file.bytes(),
                                              " bytes with a header of ", file.header_bytes()));
    }
  }
  std::vector<std::vector<Span>> spans(manifest.files_size());
  for (const Manifest::Tensor& tensor : manifest.tensors()) {
    if (!tensor_names.insert(tensor.name()).second) {
      return absl::DataLossError(
          absl::StrCat("manifest: tensor ", tensor.name(), " is listed twice"));
    }
    SHOAL_RETURN_IF_ERROR(CheckTensor(tensor, &spans));
  }
  for (int i = 0; i < manifest.files_size(); ++i)
    SHOAL_RETURN_IF_ERROR(CheckFileSpans(manifest.files(i), spans[i]));
  return absl::OkStatus();
}

std::optional<int64_t> CheckedNumel(const google::protobuf::RepeatedField<int64_t>& shape) {
  int64_t numel = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(numel, size, &numel)) return std::nullopt;
  }
  return numel;
}

}  // namespace shoal
