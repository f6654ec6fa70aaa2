// Attention's gradients from the saved log-sum-exp, without atomic additions: a block for a tile of
// one key head's keys goes over its group's queries in order, and one for a tile of one head's
// queries over its keys. The scores are computed in both.
#include "kernels/cuda/attention_tiles.h"

namespace shoal::cuda {
namespace {

constexpr int kDeltaLanes = 32;

// deltas = the dot product of each row of out and of its gradient, a warp a row.
template <class T>
__global__ void RowDeltas(DeviceAttention x, DeviceAttentionGradients g) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x) / kDeltaLanes;
  if (row >= x.batch * x.heads * x.queries) return;
  const int64_t t = row % x.queries, n = row / x.queries % x.heads, b = row / x.queries / x.heads;
  const T* out = HeadOf<const T>(x.out, x.out_strides, b, n).Row(t);
  const T* grad = HeadOf<const T>(g.grad_out, g.grad_out_strides, b, n).Row(t);
  float dot = 0;
  for (int64_t i = threadIdx.x % kDeltaLanes; i < x.head_dim; i += kDeltaLanes)
    dot += ToFloat(out[i]) * ToFloat(grad[i]);
  dot = WarpSum(dot);
  if (threadIdx.x % kDeltaLanes == 0) g.deltas[row] = dot;
}

// A block's tiles in shared memory.
template <class Tile>
struct SharedTiles {
  float *queries, *grad_out, *keys, *values, *probabilities, *grad_scores;
  static constexpr size_t kBytes = sizeof(float) * (4 * Tile::kFloats + 2 * Tile::kScoreFloats);

  static __device__ SharedTiles Take() {
    float* const base = DynamicShared();
    float* const scores = base + 4 * Tile::kFloats;
    return {base,   base + Tile::kFloats,       base + 2 * Tile::kFloats, base + 3 * Tile::kFloats,
            scores, scores + Tile::kScoreFloats};
  }
};

// One head's tile of queries against a tile of keys: the dropped probabilities and the gradients of
// the scores, to shared memory.
template <class Tile>
__device__ void ScoreGradients(const DeviceAttention& x, const float* deltas, int64_t b, int64_t n,
                               int64_t query, int64_t key, const SharedTiles<Tile>& tiles) {
  const float scale = x.scale * kLog2E;
  const int head_dim = static_cast<int>(x.head_dim);
  const uint64_t stream = DropoutStream(x, b, n);
  Scores<Tile> p, ds;
  ScoreProduct<Tile>(tiles.queries, tiles.keys, head_dim, p);
  ScoreProduct<Tile>(tiles.grad_out, tiles.values, head_dim, ds);
  SHOAL_UNROLL
  for (int r = 0; r < Tile::kRows; ++r) {
    const int64_t t = query + ThreadRow() + r * kSide;
    const KeyRange range = VisibleKeys(x, b, t);
    const bool inside = t < x.queries;
    const float lse = inside ? x.lse[b * x.lse_batch_stride + n * x.lse_head_stride + t] : 0.0f;
    const float delta = inside ? deltas[(b * x.heads + n) * x.queries + t] : 0.0f;
    SHOAL_UNROLL
    for (int c = 0; c < Tile::kRows; ++c) {
      const int64_t s = key + ThreadColumn() + c * kSide;
      const bool seen = range.Sees(s);
      const float whole = seen ? exp2f(p[r][c] * scale - lse) : 0.0f;
      const float factor = DropoutFactor(x, stream, t, s);
      p[r][c] = whole * factor;
      ds[r][c] = seen ? whole * (ds[r][c] * factor - delta) * x.scale : 0.0f;
    }
  }
  PutScores<Tile>(p, tiles.probabilities);
  PutScores<Tile>(ds, tiles.grad_scores);
}

// Rows [first, first + size) of a head's gradient, of which there are `rows`.
template <class Tile, class T>
__device__ void PutGradient(const HeadColumns<Tile>& sum, void* gradient,
                            const DeviceHeadStrides& strides, int64_t b, int64_t n, int64_t first,
                            int64_t rows, int head_dim, bool add) {
  SHOAL_UNROLL
  for (int r = 0; r < Tile::kRows; ++r) {
    const int64_t row = first + ThreadRow() + r * kSide;
    if (row >= rows) return;
    SHOAL_UNROLL
    for (int s = 0; s < Tile::kStrips; ++s) {
      const int column = ThreadColumn() + s * kSide;
      if (column >= head_dim) break;
      if (add) {
        HeadOf<float>(gradient, strides, b, n).Row(row)[column] += sum[r][s];
      } else {
        HeadOf<T>(gradient, strides, b, n).Row(row)[column] = FromFloat<T>(sum[r][s]);
      }
    }
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(kTileThreads)
    KeyGradients(DeviceAttention x, DeviceAttentionGradients g) {
  const int64_t tiles_of_head = CeilDivide(x.keys, Tile::kSize);
  const int64_t first = blockIdx.x % tiles_of_head * Tile::kSize;
  const int64_t b = blockIdx.x / tiles_of_head / x.key_heads,
                key_head = blockIdx.x / tiles_of_head % x.key_heads;
  const int64_t group = x.heads / x.key_heads;
  const int head_dim = static_cast<int>(x.head_dim);
  const SharedTiles<Tile> tiles = SharedTiles<Tile>::Take();
  LoadTile<Tile>(HeadOf<const T>(x.k, x.k_strides, b, key_head), first, x.keys, head_dim,
                 tiles.keys);
  LoadTile<Tile>(HeadOf<const T>(x.v, x.v_strides, b, key_head), first, x.keys, head_dim,
                 tiles.values);
  HeadColumns<Tile> grad_k = {}, grad_v = {};
  // Queries before the tile's first key do not see it.
  const int64_t ahead = x.key_place + first - x.query_place;
  const int64_t first_query = (ahead > 0 ? ahead : 0) / Tile::kSize * Tile::kSize;
  for (int64_t n = key_head * group; n < (key_head + 1) * group; ++n) {
    for (int64_t query = first_query; query < x.queries; query += Tile::kSize) {
      // Nor do those of later documents.
      if (VisibleKeys(x, b, query).first >= first + Tile::kSize) break;
      __syncthreads();
      LoadTile<Tile>(HeadOf<const T>(x.q, x.q_strides, b, n), query, x.queries, head_dim,
                     tiles.queries);
      LoadTile<Tile>(HeadOf<const T>(g.grad_out, g.grad_out_strides, b, n), query, x.queries,
                     head_dim, tiles.grad_out);
      __syncthreads();
      ScoreGradients<Tile>(x, g.deltas, b, n, query, first, tiles);
      __syncthreads();
      AddProduct<Tile, true>(tiles.probabilities, tiles.grad_out, grad_v);
      AddProduct<Tile, true>(tiles.grad_scores, tiles.queries, grad_k);
    }
  }
  PutGradient<Tile, T>(grad_k, g.grad_k, g.grad_k_strides, b, key_head, first, x.keys, head_dim,
                       g.sums);
  PutGradient<Tile, T>(grad_v, g.grad_v, g.grad_v_strides, b, key_head, first, x.keys, head_dim,
                       g.sums);
}

template <class T, class Tile>
__global__ void __launch_bounds__(kTileThreads)
    QueryGradients(DeviceAttention x, DeviceAttentionGradients g) {
  const auto [first, b, n, key_head] = QueriesOfBlock<Tile>(x);
  const int head_dim = static_cast<int>(x.head_dim);
  const SharedTiles<Tile> tiles = SharedTiles<Tile>::Take();
  LoadTile<Tile>(HeadOf<const T>(x.q, x.q_strides, b, n), first, x.queries, head_dim,
                 tiles.queries);
  LoadTile<Tile>(HeadOf<const T>(g.grad_out, g.grad_out_strides, b, n), first, x.queries, head_dim,
                 tiles.grad_out);
  HeadColumns<Tile> grad_q = {};
  const KeyRange keys = KeysOfTile<Tile>(x, b, first);
  for (int64_t key = keys.first; key < keys.end; key += Tile::kSize) {
    __syncthreads();
    LoadTile<Tile>(HeadOf<const T>(x.k, x.k_strides, b, key_head), key, x.keys, head_dim,
                   tiles.keys);
    LoadTile<Tile>(HeadOf<const T>(x.v, x.v_strides, b, key_head), key, x.keys, head_dim,
                   tiles.values);
    __syncthreads();
    ScoreGradients<Tile>(x, g.deltas, b, n, first, key, tiles);
    __syncthreads();
    AddProduct<Tile, false>(tiles.grad_scores, tiles.keys, grad_q);
  }
  PutGradient<Tile, T>(grad_q, g.grad_q, g.grad_q_strides, b, n, first, x.queries, head_dim,
                       g.sums);
}

template <class T, class Tile>
void LaunchBackward(void* stream, const DeviceAttention& x, const DeviceAttentionGradients& g) {
  constexpr size_t kBytes = SharedTiles<Tile>::kBytes;
  if (const int64_t rows = x.batch * x.heads * x.queries; rows > 0) {
    Launch(RowDeltas<T>, Grid(CeilDivide(rows, kTileThreads / kDeltaLanes)), kTileThreads, 0,
           stream, x, g);
    Launch(QueryGradients<T, Tile>, Grid(x.batch * x.heads * CeilDivide(x.queries, Tile::kSize)),
           kTileThreads, kBytes, stream, x, g);
  }
  if (x.batch * x.keys > 0) {
    Launch(KeyGradients<T, Tile>, Grid(x.batch * x.key_heads * CeilDivide(x.keys, Tile::kSize)),
           kTileThreads, kBytes, stream, x, g);
  }
}

}  // namespace

void AttentionBackward(const DeviceCall& call, const DeviceAttention& attention,
                       const DeviceAttentionGradients& gradients) {
  // Four tiles of heads and two of scores within 99 KB, which every architecture's blocks may ask.
  DispatchType(call.type, [&]<class T>(T) {
    if (attention.head_dim <= 64) {
      LaunchBackward<T, Tile<64, 4>>(call.stream, attention, gradients);
    } else if (attention.head_dim <= 128) {
      LaunchBackward<T, Tile<32, 8>>(call.stream, attention, gradients);
    } else {
      LaunchBackward<T, Tile<16, 16>>(call.stream, attention, gradients);
    }
  });
}

}  // namespace shoal::cuda
