// Legend: R rows (tokens of all segments), N heads, K key heads, H head_dim, S places.
#include "kernels/paged_attention_device.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>

#include "core/status.h"
#include "kernels/attention.h"
#include "kernels/device_kernels.h"
#include "kernels/fused.h"
#include "kernels/reference.h"

namespace shoal {
namespace {

// A whole prompt of as many tokens or more is what CausalAttention computes.
constexpr int64_t kMinPromptTokens = 16;
// Of results that long rows have in pieces.
constexpr int64_t kScratchBytes = int64_t{64} << 20;

int64_t NumBlocks(const PagedSegment& segment, int64_t block_places) {
  return (segment.past + segment.num_tokens + block_places - 1) / block_places;
}

bool IsPrompt(const PagedSegment& segment) {
  return segment.past == 0 && segment.num_tokens >= kMinPromptTokens;
}

DevicePages PagesOf(const PagedOperands& x, const Tensor& table) {
  const auto* words = table.const_data_ptr<int64_t>();
  const int64_t rows = x.q.size(0);
  return {.rows = rows,
          .key_heads = x.key_heads(),
          .head_dim = x.head_dim(),
          .block_places = x.layout.block_places,
          .places = words,
          .tables = words + rows,
          .blocks = reinterpret_cast<void* const*>(words + 2 * rows),
          .key_offset = x.layout.key_offset,
          .value_offset = x.layout.value_offset};
}

// Rows [first, end) of segments whose longest has so many places.
void AttendRows(const PagedOperands& x, const DevicePages& pages, int64_t first, int64_t end,
                int64_t places) {
  const int64_t heads = x.q.size(1), head_dim = x.head_dim();
  const int64_t pieces = (places + kDevicePagedPiece - 1) / kDevicePagedPiece;
  int64_t rows_at_once = end - first;
  Tensor partials;
  if (pieces > 1) {
    const int64_t floats = heads * pieces * (head_dim + 2);  // Of a row
    rows_at_once = std::clamp<int64_t>(kScratchBytes / (4 * floats), 1, rows_at_once);
    partials = at::empty({rows_at_once * floats}, x.q.options().dtype(at::kFloat));
  }
  for (; first < end; first += rows_at_once) {
    DevicePagedAttention call{
        .pages = pages,
        .heads = heads,
        .scale = static_cast<float>(x.scale),
        .q = x.q.select(0, first).const_data_ptr(),
        .q_stride = x.q.stride(0),
        .out = x.out.select(0, first).mutable_data_ptr(),
        .pieces = pieces,
        .partials = partials.defined() ? MutableData<float>(partials) : nullptr};
    call.pages.rows = std::min(rows_at_once, end - first);
    call.pages.places += first;
    call.pages.tables += first;
    DeviceKernelsFor(x.q)->paged_attention(CallOn(x.q), call);
  }
}

// A segment's block of a layer: (K, block_places, H), over memory that it does not own.
Tensor BlockAt(const PagedOperands& x, const PagedSegment& segment, int64_t block, int64_t offset) {
  auto* begin = static_cast<char*>(const_cast<void*>(segment.blocks[block]));
  return at::from_blob(begin + offset * x.q.element_size(),
                       {x.key_heads(), x.layout.block_places, x.head_dim()}, x.q.options());
}

// Writes the segment's new keys (or values) to its blocks and returns all: (1, S, K, H).
Tensor WithNewPlaces(const PagedOperands& x, const PagedSegment& segment, const Tensor& rows_RKH,
                     int64_t offset) {
  const int64_t places = x.layout.block_places, end = segment.past + segment.num_tokens;
  for (int64_t place = segment.past; place < end;) {
    const int64_t within = place % places, count = std::min(places - within, end - place);
    BlockAt(x, segment, place / places, offset)
        .narrow(1, within, count)
        .copy_(rows_RKH.narrow(0, segment.first_row + place - segment.past, count).transpose(0, 1));
    place += count;
  }
  std::vector<Tensor> blocks;
  for (int64_t block = 0; block * places < end; ++block)
    blocks.push_back(BlockAt(x, segment, block, offset));
  return at::cat(blocks, 1).narrow(1, 0, end).transpose(0, 1).unsqueeze(0);
}

}  // namespace

bool HasPagedKernels(const Tensor& q) {
  return DeviceKernelsFor(q) != nullptr && q.size(2) <= kDeviceMaxHeadDim;
}

Tensor PagedTable(std::span<const PagedSegment> segments, int64_t block_places,
                  const at::TensorOptions& kind) {
  if (!DeviceKernelsFor(at::empty({0}, kind))) return {};
  int64_t rows = 0, blocks = 0;
  for (const PagedSegment& segment : segments) {
    rows += segment.num_tokens;
    blocks += NumBlocks(segment, block_places);
  }
  const Tensor host = at::empty(
      {2 * rows + blocks}, at::TensorOptions(at::kLong).pinned_memory(!kind.device().is_cpu()));
  auto* places = host.mutable_data_ptr<int64_t>();
  int64_t *tables = places + rows, *addresses = tables + rows, block = 0;
  for (const PagedSegment& segment : segments) {
    std::iota(places, places + segment.num_tokens, segment.past);
    std::fill_n(tables, segment.num_tokens, block);
    places += segment.num_tokens;
    tables += segment.num_tokens;
    for (int64_t i = 0; i < NumBlocks(segment, block_places); ++i, ++block)
      addresses[block] = static_cast<int64_t>(reinterpret_cast<uintptr_t>(segment.blocks[i]));
  }
  return host.to(kind.device(), at::kLong, /*non_blocking=*/true);
}

void PagedAttentionByKernels(const PagedOperands& x, const Tensor& table) {
  if (x.q.size(0) == 0) return;
  const DevicePages pages = PagesOf(x, table);
  DeviceKernelsFor(x.q)->append_to_pages(CallOn(x.q), pages, x.k.const_data_ptr(), x.k.stride(0),
                                         x.v.const_data_ptr(), x.v.stride(0));
  int64_t first = 0, places = 0;  // Of the rows that have come since the last prompt
  for (const PagedSegment& segment : x.segments) {
    if (!IsPrompt(segment)) {
      places = std::max(places, segment.past + segment.num_tokens);
      continue;
    }
    AttendRows(x, pages, first, segment.first_row, places);
    first = segment.first_row + segment.num_tokens;
    places = 0;
    const auto own = [&](const Tensor& rows) {
      return rows.narrow(0, segment.first_row, segment.num_tokens);
    };
    own(x.out).copy_(CausalAttention(own(x.q).unsqueeze(0), own(x.k).unsqueeze(0),
                                     own(x.v).unsqueeze(0), {.scale = x.scale})[0]);
  }
  AttendRows(x, pages, first, x.q.size(0), places);
}

void PagedAttentionByOperators(const PagedOperands& x) {
  for (const PagedSegment& segment : x.segments) {
    const Tensor keys = WithNewPlaces(x, segment, x.k, x.layout.key_offset),
                 values = WithNewPlaces(x, segment, x.v, x.layout.value_offset);
    const Tensor result = reference::CachedAttention(
        x.q.narrow(0, segment.first_row, segment.num_tokens).unsqueeze(0), keys, values,
        at::full({1}, keys.size(1), x.q.options().dtype(at::kLong)), x.scale);
    x.out.narrow(0, segment.first_row, segment.num_tokens).copy_(result[0]);
  }
}

}  // namespace shoal
