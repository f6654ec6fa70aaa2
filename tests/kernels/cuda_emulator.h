// As much of CUDA's device language as kernels/cuda/*.cu use, for the host: a file that includes
// this header first compiles them as C++. A block's threads are fibers of one thread, so barriers
// and warp shuffles work as on a GPU; blocks run one after the other, from the last to the first.
//
// Stops the program with a message where a kernel is wrong on a GPU: threads wait for ever or at
// different barriers, a warp's shuffle lacks lanes, shared memory is written past its end. What is
// read before it is written is NaN there.
#pragma once

#define SHOAL_CUDA_EMULATOR

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)
#define SHOAL_UNROLL
#define __shared__ static thread_local  // One block at a time
#define __syncthreads() cuda_emulator::BlockBarrier(__FILE__, __LINE__)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
// Of the fiber that runs.
inline constinit thread_local dim3 threadIdx, blockIdx;

namespace cuda_emulator {

// Called with true before a launch touches memory, with false when it is done.
void SetMemoryGuard(std::function<void(bool)> guard);

void BlockBarrier(const char* file, int line);
// Gives the `bytes` of `value` to the other lanes of the warp and gets those of `lane`; all lanes
// call it together. At most 8 bytes.
void ExchangeInWarp(const void* value, void* other, size_t bytes, unsigned lane);
float* DynamicShared();

// Calls body once a thread of the grid.
void RunGrid(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body);

template <class... Parameters>
void Launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            void* /*stream*/, std::type_identity_t<Parameters>... args) {
  RunGrid(grid, threads, shared_bytes, [&] { kernel(args...); });
}

uint16_t Bfloat16Bits(float x);
uint16_t HalfBits(float x);
float FloatOfHalf(uint16_t bits);

}  // namespace cuda_emulator

template <class T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int lane_mask) {
  T other;
  cuda_emulator::ExchangeInWarp(&value, &other, sizeof(T),
                                (threadIdx.x % 32) ^ static_cast<unsigned>(lane_mask));
  return other;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned lanes = predicate ? 1u << (threadIdx.x % 32) : 0;
  for (int distance = 16; distance > 0; distance /= 2)
    lanes |= __shfl_xor_sync(mask, lanes, distance);
  return lanes;
}

// Never fused with what follows or goes before.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t word = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {cuda_emulator::Bfloat16Bits(x)}; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return cuda_emulator::FloatOfHalf(x.bits); }
inline __half __float2half_rn(float x) { return {cuda_emulator::HalfBits(x)}; }
