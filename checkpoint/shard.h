// One rank's file of a checkpoint: plain safetensors, written as a stream with checksums, read by
// chunks.
#pragma once

#include <string>

#include "absl/types/span.h"

#include "checkpoint/save_plan.h"

namespace shoal {

// Writes and syncs `folder`/`name` with the planned ones of `pieces`; returns its record for the
// manifest. Tensors on the CPU are written from where they are; others pass through one chunk of
// host memory.
absl::StatusOr<ShardRecord> WriteShard(FileSystem& files, const std::string& folder,
                                       const std::string& name, absl::Span<const StatePiece> pieces,
                                       absl::Span<const PlannedPiece> plan, int64_t chunk_bytes);

// The checkpoint's file `record`, opened after its size and header were found right. DataLoss
// otherwise.
absl::StatusOr<std::unique_ptr<ReadableFile>> OpenShard(FileSystem& files,
                                                        const std::string& folder,
                                                        const Manifest::File& record);

// Fills `out`, which has the chunk's size, and checks it. DataLoss names tensor, elements and file.
absl::Status ReadChunk(const ReadableFile& file, const Manifest::File& record,
                       const Manifest::Tensor& tensor, const Manifest::Chunk& chunk,
                       absl::Span<char> out);

}  // namespace shoal
