// Causal attention, a tile of one head's queries a block: scores a tile of keys at a time, with the
// running maximum and sum of each row (Dao et al. 2022).
#include "kernels/cuda/attention_tiles.h"

namespace shoal::cuda {
namespace {

// Rows' scores in base 2 become probabilities against the running maximum; `sum` (this thread's
// share of it) and `out` follow the maximum.
template <class Tile>
__device__ void SoftmaxTile(const DeviceAttention& x, const KeyRange (&ranges)[Tile::kRows],
                            uint64_t stream, int64_t query, int64_t key, Scores<Tile>& scores,
                            float (&maximum)[Tile::kRows], float (&sum)[Tile::kRows],
                            HeadColumns<Tile>& out) {
  const float scale = x.scale * kLog2E;
  SHOAL_UNROLL
  for (int r = 0; r < Tile::kRows; ++r) {
    float highest = maximum[r];
    SHOAL_UNROLL
    for (int c = 0; c < Tile::kRows; ++c) {
      const bool seen = ranges[r].Sees(key + ThreadColumn() + c * kSide);
      scores[r][c] = seen ? scores[r][c] * scale : -INFINITY;
      highest = fmaxf(highest, scores[r][c]);
    }
    highest = RowMax(highest);
    const float shift = highest == -INFINITY ? 0.0f : highest;
    const float kept = exp2f(maximum[r] - shift);
    maximum[r] = highest;
    sum[r] *= kept;
    SHOAL_UNROLL
    for (int s = 0; s < Tile::kStrips; ++s) out[r][s] *= kept;
    SHOAL_UNROLL
    for (int c = 0; c < Tile::kRows; ++c) {
      const float p = exp2f(scores[r][c] - shift);
      sum[r] += p;
      scores[r][c] = p * DropoutFactor(x, stream, query + ThreadRow() + r * kSide,
                                       key + ThreadColumn() + c * kSide);
    }
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(kTileThreads) AttendQueries(DeviceAttention x) {
  const auto [first, b, n, key_head] = QueriesOfBlock<Tile>(x);
  const KeyRange keys = KeysOfTile<Tile>(x, b, first);
  if (x.running && keys.first >= keys.end) return;
  const int head_dim = static_cast<int>(x.head_dim);
  const auto k = HeadOf<const T>(x.k, x.k_strides, b, key_head),
             v = HeadOf<const T>(x.v, x.v_strides, b, key_head);
  const auto running = HeadOf<float>(x.running, x.running_strides, b, n);
  float* const lse = x.lse + b * x.lse_batch_stride + n * x.lse_head_stride;
  const uint64_t stream = DropoutStream(x, b, n);

  float* const queries = DynamicShared();
  float* const keys_or_values = queries + Tile::kFloats;
  float* const probabilities = keys_or_values + Tile::kFloats;

  KeyRange ranges[Tile::kRows];
  float maximum[Tile::kRows], sum[Tile::kRows];
  HeadColumns<Tile> out;
  SHOAL_UNROLL
  for (int r = 0; r < Tile::kRows; ++r) {
    const int64_t query = first + ThreadRow() + r * kSide;
    ranges[r] = VisibleKeys(x, b, query);
    // Earlier keys gave a sum of one, scaled by 2^lse.
    maximum[r] = x.running && query < x.queries ? lse[query] : -INFINITY;
    const bool begun = maximum[r] != -INFINITY;
    sum[r] = begun && ThreadColumn() == 0 ? 1.0f : 0.0f;
    SHOAL_UNROLL
    for (int s = 0; s < Tile::kStrips; ++s) {
      const int column = ThreadColumn() + s * kSide;
      out[r][s] = begun && column < head_dim ? running.Row(query)[column] : 0.0f;
    }
  }
  LoadTile<Tile>(HeadOf<const T>(x.q, x.q_strides, b, n), first, x.queries, head_dim, queries);
  for (int64_t key = keys.first; key < keys.end; key += Tile::kSize) {
    LoadTile<Tile>(k, key, x.keys, head_dim, keys_or_values);
    __syncthreads();
    Scores<Tile> scores;
    ScoreProduct<Tile>(queries, keys_or_values, head_dim, scores);
    SoftmaxTile<Tile>(x, ranges, stream, first, key, scores, maximum, sum, out);
    PutScores<Tile>(scores, probabilities);
    __syncthreads();
    LoadTile<Tile>(v, key, x.keys, head_dim, keys_or_values);
    __syncthreads();
    AddProduct<Tile, false>(probabilities, keys_or_values, out);
    __syncthreads();
  }

  const auto target = HeadOf<T>(x.out, x.out_strides, b, n);
  SHOAL_UNROLL
  for (int r = 0; r < Tile::kRows; ++r) {
    const int64_t query = first + ThreadRow() + r * kSide;
    const float total = RowSum(sum[r]), inverse = total == 0 ? 0.0f : 1.0f / total;
    if (query >= x.queries) continue;
    if (ThreadColumn() == 0) lse[query] = maximum[r] + log2f(total);
    SHOAL_UNROLL
    for (int s = 0; s < Tile::kStrips; ++s) {
      const int column = ThreadColumn() + s * kSide;
      if (column >= head_dim) break;
      const float mean = out[r][s] * inverse;
      target.Row(query)[column] = FromFloat<T>(mean);
      if (x.running) running.Row(query)[column] = mean;
    }
  }
}

template <class T, class Tile>
void LaunchForward(void* stream, const DeviceAttention& x) {
  constexpr size_t kBytes = sizeof(float) * (2 * Tile::kFloats + Tile::kScoreFloats);
  Launch(AttendQueries<T, Tile>, Grid(x.batch * x.heads * CeilDivide(x.queries, Tile::kSize)),
         kTileThreads, kBytes, stream, x);
}

}  // namespace

void Attention(const DeviceCall& call, const DeviceAttention& attention) {
  if (attention.batch * attention.heads * attention.queries == 0) return;
  DispatchType(call.type, [&]<class T>(T) {
    if (attention.head_dim <= 64) {
      LaunchForward<T, Tile<64, 4>>(call.stream, attention);
    } else if (attention.head_dim <= 128) {
      LaunchForward<T, Tile<64, 8>>(call.stream, attention);
    } else {
      LaunchForward<T, Tile<32, 16>>(call.stream, attention);
    }
  });
}

}  // namespace shoal::cuda
