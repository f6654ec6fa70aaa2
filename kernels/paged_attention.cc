// Legend: R rows (tokens of all segments), N heads, K key heads, H head_dim, S places.
#include "kernels/paged_attention.h"

#include <cmath>
#include <cstring>
#include <vector>

#include <ATen/ATen.h>

#include "core/status.h"
#include "core/trace.h"
#include "kernels/fused.h"
#include "kernels/paged_attention_device.h"
#include "kernels/reference.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

// From this many queries on, blocks of queries beat one pass over the keys for each.
constexpr int64_t kMinFlashQueries = 16;

template <class T>
T* Row(const PagedSegment& segment, const PagedLayout& layout, int64_t head_offset,
       int64_t head_dim, int64_t place) {
  T* block = static_cast<T*>(const_cast<void*>(segment.blocks[place / layout.block_places]));
  return block + head_offset + place % layout.block_places * head_dim;
}

// Writes the segment's new keys (or values) of one head behind those that are there.
template <class T>
void Append(const PagedOperands& x, const PagedSegment& segment, const Tensor& rows, int64_t offset,
            int64_t key_head) {
  const int64_t head_dim = x.head_dim(), head_offset = x.HeadOffset(offset, key_head);
  for (int64_t t = 0; t < segment.num_tokens; ++t) {
    std::memcpy(
        Row<T>(segment, x.layout, head_offset, head_dim, segment.past + t),
        Data<T>(rows) + (segment.first_row + t) * rows.stride(0) + key_head * rows.stride(1),
        head_dim * sizeof(T));
  }
}

// A head's keys (or values), all places end to end.
template <class T>
void Collect(const PagedOperands& x, const PagedSegment& segment, int64_t offset, int64_t key_head,
             T* out) {
  const int64_t places = segment.past + segment.num_tokens, head_dim = x.head_dim();
  for (int64_t first = 0; first < places; first += x.layout.block_places) {
    std::memcpy(out + first * head_dim,
                Row<T>(segment, x.layout, x.HeadOffset(offset, key_head), head_dim, first),
                std::min(x.layout.block_places, places - first) * head_dim * sizeof(T));
  }
}

// Few queries: they read the blocks where these lie.
template <class T>
void Decode(const PagedOperands& x, const PagedSegment& segment, int64_t key_head, float* scores) {
  const int64_t head_dim = x.head_dim(), group = x.group();
  simd::KernelsFor<T>().cached_attention(
      {.q = Data<T>(x.q) + segment.first_row * x.q.stride(0) + key_head * group * head_dim,
       .q_token_stride = x.q.stride(0),
       .out = MutableData<T>(x.out) + segment.first_row * x.out.stride(0) +
              key_head * group * head_dim,
       .out_token_stride = x.out.stride(0),
       .tokens = segment.num_tokens,
       .group = group,
       .head_dim = head_dim,
       .past = segment.past,
       .blocks = segment.blocks,
       .block_places = x.layout.block_places,
       .k_offset = x.HeadOffset(x.layout.key_offset, key_head),
       .v_offset = x.HeadOffset(x.layout.value_offset, key_head),
       .scale = static_cast<float>(x.scale),
       .scores = scores});
}

// Many queries: the training pass's kernel over keys and values laid end to end.
template <class T>
void Prefill(const PagedOperands& x, const PagedSegment& segment, int64_t key_head) {
  const int64_t places = segment.past + segment.num_tokens, head_dim = x.head_dim();
  const auto& kernels = simd::KernelsFor<T>();
  const Tensor keys = at::empty({2, places, head_dim}, x.q.options());
  T* k = MutableData<T>(keys);
  T* v = k + places * head_dim;
  Collect<T>(x, segment, x.layout.key_offset, key_head, k);
  Collect<T>(x, segment, x.layout.value_offset, key_head, v);
  const Tensor scratch = at::empty(
      {kernels.attention_scratch_bytes(segment.num_tokens, places, head_dim, false)}, at::kByte);
  for (int64_t g = 0; g < x.group(); ++g) {
    const int64_t head = key_head * x.group() + g;
    kernels.attention(
        {.queries = segment.num_tokens,
         .keys = places,
         .head_dim = head_dim,
         .query_place = segment.past,
         .key_place = 0,
         .starts = nullptr,
         .scale = static_cast<float>(x.scale),
         .q = Data<T>(x.q) + segment.first_row * x.q.stride(0) + head * head_dim,
         .k = k,
         .v = v,
         .q_stride = x.q.stride(0),
         .k_stride = head_dim,
         .v_stride = head_dim,
         .out = MutableData<T>(x.out) + segment.first_row * x.out.stride(0) + head * head_dim,
         .out_stride = x.out.stride(0),
         .lse = nullptr},
        /*keys_are_packed=*/g > 0, scratch.mutable_data_ptr());
  }
}

template <class T>
void Attend(const PagedOperands& x) {
  const int64_t key_heads = x.key_heads();
  int64_t places = 0;
  for (const PagedSegment& segment : x.segments)
    places = std::max(places, segment.past + segment.num_tokens);
  ParallelFor(x.segments.size() * key_heads, 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;
    std::vector<float> scores(places);
    for (int64_t i = begin; i < end; ++i) {
      const PagedSegment& segment = x.segments[i / key_heads];
      const int64_t key_head = i % key_heads;
      Append<T>(x, segment, x.k, x.layout.key_offset, key_head);
      Append<T>(x, segment, x.v, x.layout.value_offset, key_head);
      if (segment.num_tokens < kMinFlashQueries) {
        Decode<T>(x, segment, key_head, scores.data());
      } else {
        Prefill<T>(x, segment, key_head);
      }
    }
  });
}

// Any dtype: each segment's keys and values laid end to end, and the plain operation.
template <class T>
void AttendPlainly(const PagedOperands& x) {
  const int64_t head_dim = x.head_dim(), key_heads = x.key_heads();
  for (const PagedSegment& segment : x.segments) {
    const int64_t places = segment.past + segment.num_tokens;
    const Tensor keys = at::empty({key_heads, places, head_dim}, x.q.options()),
                 values = at::empty_like(keys);
    for (int64_t head = 0; head < key_heads; ++head) {
      Append<T>(x, segment, x.k, x.layout.key_offset, head);
      Append<T>(x, segment, x.v, x.layout.value_offset, head);
      const int64_t at = head * places * head_dim;
      Collect<T>(x, segment, x.layout.key_offset, head, MutableData<T>(keys) + at);
      Collect<T>(x, segment, x.layout.value_offset, head, MutableData<T>(values) + at);
    }
    const auto sequence = [](const Tensor& heads) { return heads.transpose(0, 1).unsqueeze(0); };
    const Tensor result = reference::CachedAttention(
        x.q.narrow(0, segment.first_row, segment.num_tokens).unsqueeze(0), sequence(keys),
        sequence(values), at::full({1}, places, at::kLong), x.scale);
    x.out.narrow(0, segment.first_row, segment.num_tokens).copy_(result[0]);
  }
}

// Elements of a row in the order of heads, without gaps.
Tensor WithDenseHeads(const Tensor& x) {
  return x.stride(2) == 1 && x.stride(1) == x.size(2) ? x : x.contiguous();
}

}  // namespace

Tensor PagedAttention(const Tensor& q_RNH, const Tensor& k_RKH, const Tensor& v_RKH,
                      std::span<const PagedSegment> segments, const PagedLayout& layout,
                      double scale, const Tensor& table) {
  const TraceSpan span(TraceKind::kAttention, "paged attention");
  SHOAL_CHECK(q_RNH.dim() == 3 && k_RKH.dim() == 3 && v_RKH.sizes() == k_RKH.sizes() &&
              q_RNH.size(0) == k_RKH.size(0) && q_RNH.size(2) == k_RKH.size(2) &&
              k_RKH.size(1) > 0 && q_RNH.size(1) % k_RKH.size(1) == 0 &&
              k_RKH.scalar_type() == q_RNH.scalar_type() &&
              v_RKH.scalar_type() == q_RNH.scalar_type())
      << "PagedAttention: q " << q_RNH.sizes() << ", k " << k_RKH.sizes() << ", v " << v_RKH.sizes()
      << "; want (R, N, H) and twice (R, K, H) of one dtype, K dividing N";
  SHOAL_CHECK(k_RKH.device() == q_RNH.device() && v_RKH.device() == q_RNH.device())
      << "PagedAttention: q on " << q_RNH.device().str() << ", k on " << k_RKH.device().str()
      << ", v on " << v_RKH.device().str();
  int64_t rows = 0;
  for (const PagedSegment& segment : segments) {
    SHOAL_CHECK(segment.first_row == rows && segment.num_tokens > 0 && segment.past >= 0)
        << "PagedAttention: segments must follow one another";
    rows += segment.num_tokens;
  }
  SHOAL_CHECK(rows == q_RNH.size(0))
      << "PagedAttention: segments of " << rows << " tokens, q " << q_RNH.sizes();
  const at::NoGradGuard no_grad;
  const PagedOperands x{
      .q = WithDenseHeads(q_RNH),
      .k = WithDenseHeads(k_RKH),
      .v = WithDenseHeads(v_RKH),
      .out = at::empty(q_RNH.sizes(), q_RNH.options()),
      .segments = segments,
      .layout = layout,
      .scale = scale != 0 ? scale : 1.0 / std::sqrt(static_cast<double>(q_RNH.size(2)))};
  if (HasPagedKernels(x.q)) {
    PagedAttentionByKernels(x, table);
  } else if (!x.q.is_cpu()) {
    PagedAttentionByOperators(x);
  } else if (IsFused(x.q)) {
    DispatchFused(x.q, [&]<class T>(T) { Attend<T>(x); });
  } else {
    SHOAL_CHECK(x.q.scalar_type() == at::kDouble)
        << "PagedAttention: no kernel for " << toString(x.q.scalar_type());
    AttendPlainly<double>(x);
  }
  return x.out;
}

}  // namespace shoal
