// Paged attention's operands between paged_attention.cc and devices that are not the host.
#pragma once

#include <span>

#include "kernels/paged_attention.h"

namespace shoal {

// Of one call. Heads of a row are dense, and q, k and v lie on one device.
struct PagedOperands {
  Tensor q, k, v, out;
  std::span<const PagedSegment> segments;
  PagedLayout layout;
  double scale;

  int64_t head_dim() const { return q.size(2); }
  int64_t key_heads() const { return k.size(1); }
  int64_t group() const { return q.size(1) / k.size(1); }
  // Of a key head's places in a block.
  int64_t HeadOffset(int64_t of_layer, int64_t key_head) const {
    return of_layer + key_head * layout.block_places * head_dim();
  }
};

// Whether q's device has kernels for it.
bool HasPagedKernels(const Tensor& q_RNH);
// `table`: PagedTable's.
void PagedAttentionByKernels(const PagedOperands& x, const Tensor& table);

// By plain operators on any device and of any dtype: a few a block and layer.
void PagedAttentionByOperators(const PagedOperands& x);

}  // namespace shoal
