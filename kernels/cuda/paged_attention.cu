// Attention of new tokens to keys and values in blocks of places, a piece of one row's places a
// block of threads: 16 lanes share a key, each with some of its elements, and several such teams
// take keys by turns, with running maxima and sums (Dao et al. 2022). A block's heads share a key
// head, so that its keys are read once. Long rows are cut into pieces, so that one sequence fills a
// GPU too (Dao et al. 2023, Flash-Decoding).
#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {
namespace {

constexpr int kPagedThreads = 128, kTeamLanes = 16, kTeams = kPagedThreads / kTeamLanes;
constexpr int kTeamKeys = 4;  // That a team takes at a time
constexpr int kPieceStatistics =
    2;  // Floats before a piece's sums: its maximum, its sum of weights
constexpr float kPagedLog2E = 1.44269504f;

// Sum over a team, in each of its lanes.
__device__ inline float TeamSum(float x) {
  for (int distance = kTeamLanes / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// What a maximum is subtracted as, so that no -inf meets another.
__device__ inline float ShiftOf(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

template <class T>
__device__ T* PlaceInPages(const DevicePages& pages, int64_t row, int64_t offset, int64_t key_head,
                           int64_t place) {
  const auto places = static_cast<unsigned>(pages.block_places);  // 32-bit division: the cheap one
  const auto block = static_cast<unsigned>(place) / places,
             within = static_cast<unsigned>(place) % places;
  return static_cast<T*>(pages.blocks[pages.tables[row] + block]) + offset +
         (key_head * pages.block_places + within) * pages.head_dim;
}

template <class T>
__global__ void AppendRows(DevicePages pages, const T* k, int64_t k_stride, const T* v,
                           int64_t v_stride) {
  const int64_t row = blockIdx.x, place = pages.places[row];
  const int head_dim = static_cast<int>(pages.head_dim),
            elements = static_cast<int>(pages.key_heads) * head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < elements; i += kPagedThreads) {
    const int head = i / head_dim, column = i % head_dim;
    PlaceInPages<T>(pages, row, pages.key_offset, head, place)[column] = k[row * k_stride + i];
    PlaceInPages<T>(pages, row, pages.value_offset, head, place)[column] = v[row * v_stride + i];
  }
}

// A lane's elements of a row of head_dim, zeros outside it.
template <int kElements, int kWidth, class T>
__device__ void LoadElements(const T* row, int column, int head_dim, float (&out)[kElements]) {
  SHOAL_UNROLL
  for (int e = 0; e < kElements; e += kWidth) {
    const bool inside = column + e < head_dim;
    Floats<kWidth> loaded = {};
    if (inside) loaded = Load<kWidth>(row + column + e);
    SHOAL_UNROLL
    for (int w = 0; w < kWidth; ++w) out[e + w] = loaded[w];
  }
}

// Of the places that a block has, those of a row from `first` on.
struct PagedPiece {
  int64_t row, key_head, first_head, piece, first, end;
  int heads;  // Of the block
  bool only;  // The row has no other pieces
};

template <int kHeads>
__device__ PagedPiece PieceOfBlock(const DevicePagedAttention& x) {
  const int64_t group = x.heads / x.pages.key_heads, parts = CeilDivide(group, kHeads);
  PagedPiece at;
  at.piece = blockIdx.x % x.pieces;
  const int64_t rest = blockIdx.x / x.pieces, part = rest % parts;
  at.key_head = rest / parts % x.pages.key_heads;
  at.row = rest / parts / x.pages.key_heads;
  at.first_head = at.key_head * group + part * kHeads;
  at.heads = static_cast<int>(group - part * kHeads < kHeads ? group - part * kHeads : kHeads);
  const int64_t places = x.pages.places[at.row] + 1;
  at.first = at.piece * kDevicePagedPiece;
  at.end = places < at.first + kDevicePagedPiece ? places : at.first + kDevicePagedPiece;
  at.only = places <= kDevicePagedPiece;
  return at;
}

template <int kHeads, int kElements>
struct TeamState {
  float maximum[kHeads], sum[kHeads], out[kHeads][kElements];
};

// The team's keys, by turns with the other teams'.
template <class T, int kElements, int kWidth, int kHeads>
__device__ void AttendTeamKeys(const DevicePagedAttention& x, const PagedPiece& at,
                               TeamState<kHeads, kElements>& state) {
  const int head_dim = static_cast<int>(x.pages.head_dim);
  const int team = static_cast<int>(threadIdx.x) / kTeamLanes;
  const int column = static_cast<int>(threadIdx.x) % kTeamLanes * kElements;
  float q[kHeads][kElements];
  SHOAL_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    // Heads past the block's repeat its last one and are not written.
    const int64_t head = at.first_head + (h < at.heads ? h : at.heads - 1);
    LoadElements<kElements, kWidth>(
        static_cast<const T*>(x.q) + at.row * x.q_stride + head * head_dim, column, head_dim, q[h]);
    state.maximum[h] = -INFINITY;
    state.sum[h] = 0;
    SHOAL_UNROLL
    for (int e = 0; e < kElements; ++e) {
      q[h][e] *= x.scale * kPagedLog2E;
      state.out[h][e] = 0;
    }
  }
  // All lanes of a warp take every turn together.
  for (int64_t turn = at.first; turn < at.end; turn += kTeams * kTeamKeys) {
    const int64_t place = turn + team * kTeamKeys;
    float scores[kHeads][kTeamKeys];
    SHOAL_UNROLL
    for (int i = 0; i < kTeamKeys; ++i) {
      const bool seen = place + i < at.end;
      float key[kElements] = {};
      if (seen) {
        LoadElements<kElements, kWidth>(
            PlaceInPages<const T>(x.pages, at.row, x.pages.key_offset, at.key_head, place + i),
            column, head_dim, key);
      }
      SHOAL_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        float product = 0;
        SHOAL_UNROLL
        for (int e = 0; e < kElements; ++e) product += q[h][e] * key[e];
        product = TeamSum(product);
        scores[h][i] = seen ? product : -INFINITY;
      }
    }
    SHOAL_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      float highest = state.maximum[h];
      SHOAL_UNROLL
      for (int i = 0; i < kTeamKeys; ++i) highest = fmaxf(highest, scores[h][i]);
      const float shift = ShiftOf(highest), kept = exp2f(state.maximum[h] - shift);
      state.maximum[h] = highest;
      state.sum[h] *= kept;
      SHOAL_UNROLL
      for (int e = 0; e < kElements; ++e) state.out[h][e] *= kept;
      SHOAL_UNROLL
      for (int i = 0; i < kTeamKeys; ++i) {
        scores[h][i] = exp2f(scores[h][i] - shift);
        state.sum[h] += scores[h][i];
      }
    }
    SHOAL_UNROLL
    for (int i = 0; i < kTeamKeys; ++i) {
      if (place + i >= at.end) break;
      float value[kElements];
      LoadElements<kElements, kWidth>(
          PlaceInPages<const T>(x.pages, at.row, x.pages.value_offset, at.key_head, place + i),
          column, head_dim, value);
      SHOAL_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        SHOAL_UNROLL
        for (int e = 0; e < kElements; ++e) state.out[h][e] += scores[h][i] * value[e];
      }
    }
  }
}

// Shared memory: each team's maximum and sum of each head, then their weighted sums of values.
template <class T, int kElements, int kWidth, int kHeads>
__global__ void __launch_bounds__(kPagedThreads) AttendPages(DevicePagedAttention x) {
  const PagedPiece at = PieceOfBlock<kHeads>(x);
  if (at.first >= at.end) return;
  const int head_dim = static_cast<int>(x.pages.head_dim);
  const int team = static_cast<int>(threadIdx.x) / kTeamLanes;
  const int lane = static_cast<int>(threadIdx.x) % kTeamLanes;
  TeamState<kHeads, kElements> state;
  AttendTeamKeys<T, kElements, kWidth, kHeads>(x, at, state);

  float* const maxima = DynamicShared();
  float* const sums = maxima + kTeams * kHeads;
  float* const outs = sums + kTeams * kHeads;
  SHOAL_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    const int of_team = team * kHeads + h;
    if (lane == 0) {
      maxima[of_team] = state.maximum[h];
      sums[of_team] = state.sum[h];
    }
    SHOAL_UNROLL
    for (int e = 0; e < kElements; ++e) {
      const int column = lane * kElements + e;
      if (column < head_dim) outs[of_team * head_dim + column] = state.out[h][e];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < at.heads * head_dim; i += kPagedThreads) {
    const int h = i / head_dim, column = i % head_dim;
    float highest = -INFINITY;
    for (int t = 0; t < kTeams; ++t) highest = fmaxf(highest, maxima[t * kHeads + h]);
    const float shift = ShiftOf(highest);
    float sum = 0, out = 0;
    for (int t = 0; t < kTeams; ++t) {
      const float weight = exp2f(maxima[t * kHeads + h] - shift);
      sum += weight * sums[t * kHeads + h];
      out += weight * outs[(t * kHeads + h) * head_dim + column];
    }
    const int64_t head = at.row * x.heads + at.first_head + h;
    if (at.only) {
      static_cast<T*>(x.out)[head * head_dim + column] = FromFloat<T>(out / sum);
      continue;
    }
    float* const partial =
        x.partials + (head * x.pieces + at.piece) * (head_dim + kPieceStatistics);
    if (column == 0) {
      partial[0] = highest;
      partial[1] = sum;
    }
    partial[kPieceStatistics + column] = out;
  }
}

// The pieces of a row's head, where there are several, in order.
template <class T>
__global__ void MergePieces(DevicePagedAttention x) {
  const int64_t head = blockIdx.x;  // Of all rows
  const int64_t pieces = CeilDivide(x.pages.places[head / x.heads] + 1, kDevicePagedPiece);
  if (pieces == 1) return;
  const int64_t head_dim = x.pages.head_dim, length = head_dim + kPieceStatistics;
  const float* const partials = x.partials + head * x.pieces * length;
  float highest = -INFINITY;
  for (int64_t p = 0; p < pieces; ++p) highest = fmaxf(highest, partials[p * length]);
  const float shift = ShiftOf(highest);
  for (int64_t column = threadIdx.x; column < head_dim; column += kPagedThreads) {
    float sum = 0, out = 0;
    for (int64_t p = 0; p < pieces; ++p) {
      const float weight = exp2f(partials[p * length] - shift);
      sum += weight * partials[p * length + 1];
      out += weight * partials[p * length + kPieceStatistics + column];
    }
    static_cast<T*>(x.out)[head * head_dim + column] = FromFloat<T>(out / sum);
  }
}

template <class T, int kElements, int kWidth, int kHeads>
void LaunchAttendPages(void* stream, const DevicePagedAttention& x) {
  const int64_t parts = CeilDivide(x.heads / x.pages.key_heads, kHeads);
  const size_t bytes =
      sizeof(float) * kTeams * kHeads * static_cast<size_t>(x.pages.head_dim + kPieceStatistics);
  Launch(AttendPages<T, kElements, kWidth, kHeads>,
         Grid(x.pages.rows * x.pages.key_heads * parts * x.pieces), kPagedThreads, bytes, stream,
         x);
}

// The fewest elements a lane that hold a head, and as many heads a block as share a key head.
template <class T, int kElements>
void LaunchAttendHeads(void* stream, const DevicePagedAttention& x) {
  constexpr int kVector = 16 / sizeof(T), kWidth = kVector < kElements ? kVector : kElements;
  if (x.heads == x.pages.key_heads) {
    LaunchAttendPages<T, kElements, kWidth, 1>(stream, x);
  } else {
    LaunchAttendPages<T, kElements, kWidth, 4>(stream, x);
  }
}

}  // namespace

void AppendToPages(const DeviceCall& call, const DevicePages& pages, const void* k,
                   int64_t k_stride, const void* v, int64_t v_stride) {
  if (pages.rows == 0) return;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(AppendRows<T>, Grid(pages.rows), kPagedThreads, 0, call.stream, pages,
           static_cast<const T*>(k), k_stride, static_cast<const T*>(v), v_stride);
  });
}

void PagedAttention(const DeviceCall& call, const DevicePagedAttention& attention) {
  const DevicePages& pages = attention.pages;
  if (pages.rows * attention.heads == 0) return;
  DispatchWidth(call.type, {attention.q}, {pages.head_dim, attention.q_stride},
                [&]<class T, int kWidth>(T, Width<kWidth>) {
                  if constexpr (kWidth == 1) {
                    LaunchAttendPages<T, kDeviceMaxHeadDim / kTeamLanes, 1, 4>(call.stream,
                                                                               attention);
                  } else if (pages.head_dim <= 4 * kTeamLanes) {
                    LaunchAttendHeads<T, 4>(call.stream, attention);
                  } else if (pages.head_dim <= 8 * kTeamLanes) {
                    LaunchAttendHeads<T, 8>(call.stream, attention);
                  } else {
                    LaunchAttendHeads<T, kDeviceMaxHeadDim / kTeamLanes>(call.stream, attention);
                  }
                });
  if (attention.pieces == 1) return;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(MergePieces<T>, Grid(pages.rows * attention.heads), kPagedThreads, 0, call.stream,
           attention);
  });
}

}  // namespace shoal::cuda
