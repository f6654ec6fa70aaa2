// Paged attention of sequences that grow, against the plain operation over whole keys and values.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include <ATen/ATen.h>

#include "kernels/paged_attention.h"
#include "kernels/reference.h"
#include "tests/kernels/compare.h"

namespace shoal {

// Sequences in blocks of a few places that lie anywhere; what no place holds is NaN.
class PagedBlocks {
 public:
  struct Shape {
    int64_t key_heads, head_dim;
    int64_t places = 8;   // Of a block
    int64_t blocks = 64;  // A power of two
  };
  PagedBlocks(const Shape& shape, at::ScalarType dtype, at::Device device = at::kCPU)
      : shape_(shape), half_(shape.key_heads * shape.places * shape.head_dim) {
    // A layer before and one behind, which nobody may touch.
    memory_ = at::full({shape.blocks, 6 * half_}, NAN, at::TensorOptions(dtype).device(device));
  }
  PagedLayout layout() const {
    return {.block_places = shape_.places, .key_offset = 2 * half_, .value_offset = 3 * half_};
  }
  std::vector<const void*> Take(int64_t length) {
    std::vector<const void*> table;
    for (int64_t i = 0; i < length; i += shape_.places, next_ = (next_ + 37) % shape_.blocks)
      table.push_back(memory_[next_].const_data_ptr());
    return table;
  }
  bool OtherLayersAreUntouched() const {
    return memory_.narrow(1, 0, 2 * half_).isnan().all().item<bool>() &&
           memory_.narrow(1, 4 * half_, 2 * half_).isnan().all().item<bool>();
  }

 private:
  const Shape shape_;
  const int64_t half_;
  int64_t next_ = 5;
  Tensor memory_;
};

struct PagedHeads {
  int64_t heads, key_heads, head_dim;
};

// passes[p][i] new tokens of sequence i, 0 or more, in pass p.
inline void ExpectPagedEqualsReference(const PagedHeads& shape, at::ScalarType dtype,
                                       at::Device device,
                                       const std::vector<std::vector<int64_t>>& passes) {
  const size_t sequences = passes[0].size();
  std::vector<int64_t> lengths(sequences);
  for (const auto& counts : passes) {
    for (size_t i = 0; i < sequences; ++i) lengths[i] += counts[i];
  }
  PagedBlocks::Shape of_blocks{.key_heads = shape.key_heads, .head_dim = shape.head_dim};
  int64_t total = 0;
  for (int64_t length : lengths) total += length / of_blocks.places + 1;
  of_blocks.blocks = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(total)));
  PagedBlocks blocks(of_blocks, dtype, device);
  std::vector<std::vector<const void*>> tables;
  for (int64_t length : lengths) tables.push_back(blocks.Take(length));
  std::vector<Tensor> k(sequences), v(sequences);
  for (const auto& counts : passes) {
    std::vector<PagedSegment> segments;
    std::vector<size_t> sequence_of;
    int64_t rows = 0;
    for (size_t i = 0; i < sequences; ++i) {
      if (counts[i] == 0) continue;
      segments.push_back({.first_row = rows,
                          .num_tokens = counts[i],
                          .past = k[i].defined() ? k[i].size(1) : 0,
                          .blocks = tables[i].data()});
      sequence_of.push_back(i);
      rows += counts[i];
    }
    const auto rows_of = [&](const Tensor& x, size_t s) {
      return x.narrow(0, segments[s].first_row, segments[s].num_tokens).unsqueeze(0);
    };
    const Tensor q = at::randn({rows, shape.heads, shape.head_dim}).to(dtype),
                 new_k = at::randn({rows, shape.key_heads, shape.head_dim}).to(dtype),
                 new_v = at::randn({rows, shape.key_heads, shape.head_dim}).to(dtype);
    const Tensor table = PagedTable(segments, of_blocks.places, q.options().device(device));
    const Tensor got = PagedAttention(q.to(device), new_k.to(device), new_v.to(device), segments,
                                      blocks.layout(), /*scale=*/0, table)
                           .cpu();
    for (size_t s = 0; s < segments.size(); ++s) {
      const size_t i = sequence_of[s];
      k[i] = k[i].defined() ? at::cat({k[i], rows_of(new_k, s)}, 1) : rows_of(new_k, s);
      v[i] = v[i].defined() ? at::cat({v[i], rows_of(new_v, s)}, 1) : rows_of(new_v, s);
      const Tensor want = reference::CachedAttention(rows_of(q, s).to(at::kDouble),
                                                     k[i].to(at::kDouble), v[i].to(at::kDouble),
                                                     at::full({1}, k[i].size(1), at::kLong), 0);
      EXPECT_TRUE(Near(rows_of(got, s), want, dtype)) << "sequence " << i;
    }
  }
  EXPECT_TRUE(blocks.OtherLayersAreUntouched());
}

}  // namespace shoal
