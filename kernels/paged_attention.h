// Attention of sequences in generation: each one's keys and values lie in blocks of equally many
// places, anywhere in memory (Kwon et al. 2023, PagedAttention), and the new tokens' are written
// there on the way.
#pragma once

#include <cstdint>
#include <span>

#include "core/parameter.h"

namespace shoal {

// The tokens of one sequence in a pass.
struct PagedSegment {
  int64_t first_row;   // Of q, k and v
  int64_t num_tokens;  // Rows of its own from there on
  int64_t past;        // Places before them
  // Addresses of the sequence's, in order, for places [0, past + num_tokens), where q lies.
  const void* const* blocks;
};

// Where a layer's keys and values lie in a block: (K, block_places, H) elements from key_offset on,
// and as many from value_offset on.
struct PagedLayout {
  int64_t block_places;
  int64_t key_offset, value_offset;  // In elements
};

// q: (R, N, H), k, v: (R, K, H), K dividing N, rows of the segments. Writes k and v to the blocks;
// returns (R, N, H) contiguous: token t of a segment sees the segment's places 0 to past + t. A
// segment's result has the same bits whatever the other segments and the number of threads are. No
// gradient. Blocks are of q's dtype and lie, as q, k and v, in host memory or on one device.
// `table`: PagedTable's of the segments; host memory needs none.
Tensor PagedAttention(const Tensor& q_RNH, const Tensor& k_RKH, const Tensor& v_RKH,
                      std::span<const PagedSegment> segments, const PagedLayout& layout,
                      double scale = 0, const Tensor& table = {});

// What kernels on a device read of a pass's segments, in its memory: made once for all layers of
// the pass, without waiting for the device. `kind`: the dtype and device of q. Undefined in host
// memory and for what has no kernels (float64).
Tensor PagedTable(std::span<const PagedSegment> segments, int64_t block_places,
                  const at::TensorOptions& kind);

}  // namespace shoal
