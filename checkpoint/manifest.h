// The manifest as bytes, and what must hold of it before anything else is read. It is treated as
// hostile: sizes are bounded before memory is taken, sums are checked, names cannot leave the
// folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <google/protobuf/repeated_field.h>

#include "checkpoint/checkpoint.pb.h"
#include "core/status.h"

namespace shoal {

inline constexpr char kManifestName[] = "MANIFEST";
inline constexpr int64_t kMaxManifestBytes = 64 << 20;

// "SHOALCKP" | version (uint32) | crc32c of all that follows it, and of the version (uint32) |
// length of the message (uint64) | message; little-endian.
std::string EncodeManifest(const Manifest& manifest);

// The manifest in `bytes`, if the frame is whole and CheckManifest holds. DataLoss otherwise;
// FailedPrecondition for a version that this program does not know.
absl::StatusOr<Manifest> DecodeManifest(absl::string_view bytes);

// File names are plain and unique; tensor names are unique; each tensor's chunks tile it, in order;
// each file is its header and then the chunks in it, without gap or overlap. DataLoss otherwise.
absl::Status CheckManifest(const Manifest& manifest);

// The product of a shape, or nullopt if a size is negative or the product does not fit.
std::optional<int64_t> CheckedNumel(const google::protobuf::RepeatedField<int64_t>& shape);

}  // namespace shoal
