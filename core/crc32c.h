// CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected; RFC 3720, appendix B.4): the checksum of
// checkpoints and of TensorBoard's record files. It finds faults, not attackers.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace shoal {

// The checksum of what `crc` is the checksum of, followed by `data`. Crc32c("123456789") is
// 0xE3069283. Uses SSE4.2 where the processor has it, tables elsewhere.
uint32_t Crc32c(absl::string_view data, uint32_t crc = 0);

// The same by tables alone.
uint32_t Crc32cPortable(absl::string_view data, uint32_t crc = 0);

}  // namespace shoal
