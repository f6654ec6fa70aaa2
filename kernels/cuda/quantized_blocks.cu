// Numbers as int8 with a scale a block (parallel/quantized_blocks.h), a block a warp. No two
// operations are fused, so that the bits are the host's.
#include "kernels/cuda/warp_largest.h"

namespace shoal::cuda {
namespace {

constexpr int kBlocksATime = kRowThreads / 32;
constexpr float kLargestFinite = 3.40282347e38f, kSmallestNormal = 1.17549435e-38f;

__host__ __device__ constexpr int64_t NumQuantizedBlocks(int64_t n) {
  return CeilDivide(n, kDeviceQuantizedBlock);
}

// What a warp has of a block: lane t the kWidth elements from place(p), p = 0 .. kPacks - 1.
template <int kWidth>
struct LanesOfBlock {
  static constexpr int kPacks = kDeviceQuantizedBlock / 32 / kWidth;
  int64_t block, first, size;
  __device__ explicit LanesOfBlock(int64_t n)
      : block(static_cast<int64_t>(blockIdx.x) * kBlocksATime + threadIdx.x / 32),
        first(block * kDeviceQuantizedBlock),
        size(n - first < kDeviceQuantizedBlock ? n - first : kDeviceQuantizedBlock) {}
  __device__ static int place(int p) {
    return (p * 32 + static_cast<int>(threadIdx.x % 32)) * kWidth;
  }
};

// Scales follow n codes and so lie anywhere.
__device__ inline void PutScale(int8_t* scales, int64_t block, float scale) {
  memcpy(scales + 4 * block, &scale, sizeof(scale));
}
__device__ inline float ScaleAt(const int8_t* scales, int64_t block) {
  float scale;
  memcpy(&scale, scales + 4 * block, sizeof(scale));
  return scale;
}

template <class T, int kWidth>
__global__ void QuantizeBlocks(const T* values, int64_t n, int8_t* codes) {
  using Lanes = LanesOfBlock<kWidth>;
  const Lanes lanes(n);
  if (lanes.size <= 0) return;
  Floats<kWidth> mine[Lanes::kPacks];
  float largest = 0;
  SHOAL_UNROLL
  for (int p = 0; p < Lanes::kPacks; ++p) {
    if (Lanes::place(p) >= lanes.size) continue;
    mine[p] = Load<kWidth>(values + lanes.first + Lanes::place(p));
    for (int i = 0; i < kWidth; ++i) largest = Larger(largest, fabsf(mine[p][i]));
  }
  largest = WarpLargest(largest);
  float scale = largest <= kLargestFinite ? largest / 127 : NAN;
  if (scale < kSmallestNormal) scale = 0;
  if (threadIdx.x % 32 == 0) PutScale(codes + n, lanes.block, scale);
  const bool any = scale > 0;
  const float inverse = any ? 1 / scale : 0;
  SHOAL_UNROLL
  for (int p = 0; p < Lanes::kPacks; ++p) {
    if (Lanes::place(p) >= lanes.size) continue;
    Pack<int8_t, kWidth> pack;
    for (int i = 0; i < kWidth; ++i) {
      const float code = any ? rintf(__fmul_rn(mine[p][i], inverse)) : 0;
      pack.values[i] = static_cast<int8_t>(fminf(fmaxf(code, -127), 127));
    }
    *reinterpret_cast<Pack<int8_t, kWidth>*>(codes + lanes.first + Lanes::place(p)) = pack;
  }
}

template <class T, int kWidth>
__global__ void SumQuantizedBlocks(const int8_t* packed, int count, int64_t n, T* values) {
  using Lanes = LanesOfBlock<kWidth>;
  const Lanes lanes(n);
  if (lanes.size <= 0) return;
  Floats<kWidth> sums[Lanes::kPacks] = {};
  for (int part = 0; part < count; ++part) {
    const int8_t* codes = packed + part * (n + 4 * NumQuantizedBlocks(n));
    const float scale = ScaleAt(codes + n, lanes.block);
    SHOAL_UNROLL
    for (int p = 0; p < Lanes::kPacks; ++p) {
      if (Lanes::place(p) >= lanes.size) continue;
      const auto pack =
          *reinterpret_cast<const Pack<int8_t, kWidth>*>(codes + lanes.first + Lanes::place(p));
      for (int i = 0; i < kWidth; ++i)
        sums[p][i] = __fadd_rn(sums[p][i], __fmul_rn(pack.values[i], scale));
    }
  }
  SHOAL_UNROLL
  for (int p = 0; p < Lanes::kPacks; ++p) {
    if (Lanes::place(p) < lanes.size)
      Store<kWidth>(values + lanes.first + Lanes::place(p), sums[p]);
  }
}

// Calls f(T{}, Width<w>{}) as DispatchWidth; w codes are read at once where that many bytes divide
// their address and their distance too.
template <class F>
void DispatchCodes(ElementType type, const void* values, const uint8_t* packed, int64_t n, F&& f) {
  DispatchWidth(
      type, {values},
      {n, static_cast<int64_t>(reinterpret_cast<uintptr_t>(packed)), 4 * NumQuantizedBlocks(n)}, f);
}

}  // namespace

void Quantize(const DeviceCall& call, const void* values, int64_t n, uint8_t* packed) {
  if (n == 0) return;
  DispatchCodes(call.type, values, packed, n, [&]<class T, class W>(T, W) {
    Launch(QuantizeBlocks<T, W::value>, Grid(CeilDivide(NumQuantizedBlocks(n), kBlocksATime)),
           kRowThreads, 0, call.stream, static_cast<const T*>(values), n,
           reinterpret_cast<int8_t*>(packed));
  });
}

void SumQuantized(const DeviceCall& call, const uint8_t* packed, int count, int64_t n,
                  void* values) {
  if (n == 0) return;
  DispatchCodes(call.type, values, packed, n, [&]<class T, class W>(T, W) {
    Launch(SumQuantizedBlocks<T, W::value>, Grid(CeilDivide(NumQuantizedBlocks(n), kBlocksATime)),
           kRowThreads, 0, call.stream, reinterpret_cast<const int8_t*>(packed), count, n,
           static_cast<T*>(values));
  });
}

}  // namespace shoal::cuda
