// Tiles of attention in shared memory (Dao et al. 2022), for blocks of 16 x 16 threads. Thread
// (row, column) holds rows row, row + 16, ... and columns column, column + 16, ... of a product.
#pragma once

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/threefry.h"

namespace shoal::cuda {

inline constexpr int kSide = 16, kTileThreads = kSide * kSide;
inline constexpr float kLog2E = 1.44269504f;

// kSize_ queries or keys, head_dim at most 16 kStrips_.
template <int kSize_, int kStrips_>
struct Tile {
  static constexpr int kSize = kSize_;
  static constexpr int kRows = kSize / kSide;  // A thread's rows, and its columns of the scores
  static constexpr int kStrips = kStrips_;     // A thread's columns of the heads
  // Floats between rows in shared memory; odd, so that 16 rows lie in different banks.
  static constexpr int kPitch = kSide * kStrips + 1, kScorePitch = kSize + 1;
  static constexpr int kFloats = kSize * kPitch, kScoreFloats = kSize * kScorePitch;
};

__device__ inline int ThreadRow() { return static_cast<int>(threadIdx.x) / kSide; }
__device__ inline int ThreadColumn() { return static_cast<int>(threadIdx.x) % kSide; }

template <class T>
struct HeadRows {
  T* data;
  int64_t stride;
  __device__ T* Row(int64_t t) const { return data + t * stride; }
};

template <class T, class Pointer>
__device__ HeadRows<T> HeadOf(Pointer* data, const DeviceHeadStrides& strides, int64_t b,
                              int64_t n) {
  return {static_cast<T*>(data) + b * strides.batch + n * strides.head, strides.token};
}

// Rows [first, first + size) of a head of `rows`, to shared memory; zeros outside it.
template <class Tile, class T>
__device__ void LoadTile(const HeadRows<const T>& head, int64_t first, int64_t rows, int head_dim,
                         float* tile) {
  constexpr int kLanes = 32;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int r = static_cast<int>(threadIdx.x) / kLanes; r < Tile::kSize;
       r += kTileThreads / kLanes) {
    const bool inside = first + r < rows;
    for (int c = lane; c < kSide * Tile::kStrips; c += kLanes) {
      tile[r * Tile::kPitch + c] = inside && c < head_dim ? ToFloat(head.Row(first + r)[c]) : 0.0f;
    }
  }
}

template <class Tile>
using Scores = float[Tile::kRows][Tile::kRows];
template <class Tile>
using HeadColumns = float[Tile::kRows][Tile::kStrips];

// out = a b^T over head_dim.
template <class Tile>
__device__ void ScoreProduct(const float* a, const float* b, int head_dim, Scores<Tile>& out) {
  a += ThreadRow() * Tile::kPitch;
  b += ThreadColumn() * Tile::kPitch;
  SHOAL_UNROLL
  for (int r = 0; r < Tile::kRows; ++r) {
    SHOAL_UNROLL
    for (int c = 0; c < Tile::kRows; ++c) out[r][c] = 0;
  }
  for (int h = 0; h < head_dim; ++h) {
    float right[Tile::kRows];
    SHOAL_UNROLL
    for (int c = 0; c < Tile::kRows; ++c) right[c] = b[c * kSide * Tile::kPitch + h];
    SHOAL_UNROLL
    for (int r = 0; r < Tile::kRows; ++r) {
      const float left = a[r * kSide * Tile::kPitch + h];
      SHOAL_UNROLL
      for (int c = 0; c < Tile::kRows; ++c) out[r][c] += left * right[c];
    }
  }
}

// Scores of a thread to shared memory.
template <class Tile>
__device__ void PutScores(const Scores<Tile>& scores, float* shared) {
  SHOAL_UNROLL
  for (int r = 0; r < Tile::kRows; ++r) {
    SHOAL_UNROLL
    for (int c = 0; c < Tile::kRows; ++c) {
      shared[(ThreadRow() + r * kSide) * Tile::kScorePitch + ThreadColumn() + c * kSide] =
          scores[r][c];
    }
  }
}

// sum += scores values, or scores^T values.
template <class Tile, bool kTransposed>
__device__ void AddProduct(const float* scores, const float* values, HeadColumns<Tile>& sum) {
  constexpr int kRowStep = kTransposed ? 1 : Tile::kScorePitch;
  constexpr int kDepthStep = kTransposed ? Tile::kScorePitch : 1;
  scores += ThreadRow() * kRowStep;
  values += ThreadColumn();
  for (int i = 0; i < Tile::kSize; ++i) {
    float left[Tile::kRows];
    SHOAL_UNROLL
    for (int r = 0; r < Tile::kRows; ++r) left[r] = scores[r * kSide * kRowStep + i * kDepthStep];
    SHOAL_UNROLL
    for (int s = 0; s < Tile::kStrips; ++s) {
      const float right = values[i * Tile::kPitch + s * kSide];
      SHOAL_UNROLL
      for (int r = 0; r < Tile::kRows; ++r) sum[r][s] += left[r] * right;
    }
  }
}

// The queries that a block has: those of one head from `first` on. The last see the most keys: they
// begin first.
struct QueryTile {
  int64_t first, b, n, key_head;
};
template <class Tile>
__device__ QueryTile QueriesOfBlock(const DeviceAttention& x) {
  const int64_t tiles = CeilDivide(x.queries, Tile::kSize), head = blockIdx.x / tiles;
  const int64_t n = head % x.heads;
  return {(tiles - 1 - blockIdx.x % tiles) * Tile::kSize, head / x.heads, n,
          n / (x.heads / x.key_heads)};
}

// Keys [first, end) of the operands that a query sees.
struct KeyRange {
  int64_t first, end;
  __device__ bool Sees(int64_t key) const { return first <= key && key < end; }
};

__device__ inline KeyRange VisibleKeys(const DeviceAttention& x, int64_t b, int64_t query) {
  if (query >= x.queries) return {0, 0};
  const int64_t start = (x.starts ? x.starts[b * x.starts_stride + query] : 0) - x.key_place;
  const int64_t end = x.query_place + query + 1 - x.key_place;
  return {start > 0 ? start : 0, end < x.keys ? end : x.keys};
}

// Keys that any of the queries [first, first + size) sees, from the tile's first key on.
template <class Tile>
__device__ KeyRange KeysOfTile(const DeviceAttention& x, int64_t b, int64_t first) {
  const int64_t last = first + Tile::kSize < x.queries ? first + Tile::kSize - 1 : x.queries - 1;
  return {VisibleKeys(x, b, first).first / Tile::kSize * Tile::kSize, VisibleKeys(x, b, last).end};
}

__device__ inline uint64_t DropoutStream(const DeviceAttention& x, int64_t b, int64_t n) {
  if (!x.dropout_keys) return 0;
  return SubStream(static_cast<uint64_t>(x.dropout_keys[b]),
                   static_cast<uint64_t>(x.first_head + n));
}

// What dropout multiplies a probability by.
__device__ inline float DropoutFactor(const DeviceAttention& x, uint64_t stream, int64_t query,
                                      int64_t key) {
  if (!x.dropout_keys) return 1;
  const uint32_t word = ThreefryWord(stream, static_cast<uint32_t>(x.query_place + query),
                                     static_cast<uint32_t>(x.key_place + key));
  return word >= x.threshold ? x.dropout_scale : 0.0f;
}

// Over the 16 threads that share a row.
__device__ inline float RowMax(float x) {
  for (int distance = kSide / 2; distance > 0; distance /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}
__device__ inline float RowSum(float x) {
  for (int distance = kSide / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

}  // namespace shoal::cuda
