// AdamW whose moments are a byte each (optim/adamw_8bit.h), a block a warp. The new moments are
// computed twice, before their scales are known and after, and are never in memory.
#include "kernels/cuda/update_rules.h"
#include "kernels/cuda/warp_largest.h"

namespace shoal::cuda {
namespace {

constexpr int kCodes = 256, kElementsALane = kDeviceQuantizedBlock / 32;
static_assert(kCodes == kRowThreads);

// A warp's block of the weight, and a lane's elements of it that the step has: element(k),
// k = 0 .. kElementsALane - 1, where has(k).
struct LanesOfWeight {
  int64_t block, begin, end, first;
  __device__ explicit LanesOfWeight(const DeviceAdamW8Bit& step)
      : block(step.first / kDeviceQuantizedBlock +
              static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32),
        begin(step.first),
        end(step.first + step.n),
        first(block * kDeviceQuantizedBlock + threadIdx.x % 32) {}
  __device__ bool any() const { return block * kDeviceQuantizedBlock < end; }
  __device__ bool has(int k) const { return first + 32 * k >= begin && first + 32 * k < end; }
  __device__ int64_t element(int k) const { return first + 32 * k - begin; }  // Of the step
};

template <class T>
__device__ void ReadNextMoments(const DeviceAdamW8Bit& step, const simd::AdamWScalars& scalars,
                                const LanesOfWeight& lanes, const float (*numbers)[kCodes],
                                AdamWMoments* moments) {
  float scales[2];
  for (int k = 0; k < 2; ++k) scales[k] = lanes.any() ? step.scales[k][lanes.block] : 0;
  SHOAL_UNROLL
  for (int k = 0; k < kElementsALane; ++k) {
    moments[k] = {0, 0};
    if (!lanes.has(k)) continue;
    const int64_t i = lanes.element(k);
    moments[k] = NextMoments(
        scalars,
        {numbers[0][step.codes[0][i]] * scales[0], numbers[1][step.codes[1][i]] * scales[1]},
        ToFloat(static_cast<const T*>(step.gradients)[i]));
  }
}

__device__ inline void ReadTables(const float* from, float (*to)[kCodes]) {
  for (int row = 0; row < 2; ++row) to[row][threadIdx.x] = from[row * kCodes + threadIdx.x];
}

template <class T>
__global__ void UpdateBlocks(DeviceAdamW8Bit step, simd::AdamWScalars scalars) {
  __shared__ float numbers[2][kCodes];
  ReadTables(step.numbers, numbers);
  __syncthreads();
  const LanesOfWeight lanes(step);
  AdamWMoments moments[kElementsALane];
  ReadNextMoments<T>(step, scalars, lanes, numbers, moments);
  float largest[2] = {0, 0};
  SHOAL_UNROLL
  for (int k = 0; k < kElementsALane; ++k) {
    largest[0] = Larger(largest[0], fabsf(moments[k].first));
    largest[1] = Larger(largest[1], fabsf(moments[k].second));
    if (!lanes.has(k)) continue;
    const int64_t i = lanes.element(k);
    const float weight = NextWeight(scalars, step.weights[i], moments[k]);
    step.weights[i] = weight;
    PutCopy(step.copy, step.copy_type, i, weight);
  }
  for (int k = 0; k < 2; ++k) {
    const float of_warp = WarpLargest(largest[k]);
    if (threadIdx.x % 32 == 0 && lanes.any())
      step.largest[k][lanes.block] = Larger(step.largest[k][lanes.block], of_warp);
  }
}

// How many of the 255 ascending middles lie below x: the place of the number nearest to it.
__device__ inline uint8_t NearestCode(const float* middles, float x) {
  int below = 0;
  SHOAL_UNROLL
  for (int half = kCodes / 2; half > 0; half /= 2) {
    if (!(middles[below + half - 1] >= x)) below += half;
  }
  return static_cast<uint8_t>(below);
}

template <class T>
__global__ void EncodeBlocks(DeviceAdamW8Bit step, simd::AdamWScalars scalars) {
  __shared__ float numbers[2][kCodes], middles[2][kCodes];
  ReadTables(step.numbers, numbers);
  ReadTables(step.numbers + 2 * kCodes, middles);
  __syncthreads();
  const LanesOfWeight lanes(step);
  if (!lanes.any()) return;
  AdamWMoments moments[kElementsALane];
  ReadNextMoments<T>(step, scalars, lanes, numbers, moments);
  float divisors[2];
  for (int k = 0; k < 2; ++k) {
    const float scale = step.largest[k][lanes.block];
    divisors[k] = scale > 0 ? scale : 1;
  }
  SHOAL_UNROLL
  for (int k = 0; k < kElementsALane; ++k) {
    if (!lanes.has(k)) continue;
    const int64_t i = lanes.element(k);
    step.codes[0][i] = NearestCode(middles[0], moments[k].first / divisors[0]);
    step.codes[1][i] = NearestCode(middles[1], moments[k].second / divisors[1]);
  }
}

// Over the blocks that elements of the step lie in.
dim3 GridOf(const DeviceAdamW8Bit& step) {
  const int64_t first = step.first / kDeviceQuantizedBlock;
  const int64_t blocks = CeilDivide(step.first + step.n, kDeviceQuantizedBlock) - first;
  return Grid(CeilDivide(blocks, kRowThreads / 32));
}

}  // namespace

void AdamW8Bit(const DeviceCall& call, const DeviceAdamW8Bit& step,
               const simd::AdamWScalars& scalars) {
  if (step.n == 0) return;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(UpdateBlocks<T>, GridOf(step), kRowThreads, 0, call.stream, step, scalars);
  });
}

void AdamW8BitCodes(const DeviceCall& call, const DeviceAdamW8Bit& step,
                    const simd::AdamWScalars& scalars) {
  if (step.n == 0) return;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(EncodeBlocks<T>, GridOf(step), kRowThreads, 0, call.stream, step, scalars);
  });
}

}  // namespace shoal::cuda
