// What the kernels beside this file are written with. nvcc compiles them; with
// tests/kernels/cuda_emulator.h before it, any C++ compiler does, for the host.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

// Before loops whose counter indexes what is to stay in registers.
#define SHOAL_UNROLL _Pragma("unroll")
#elif !defined(SHOAL_CUDA_EMULATOR)
#error "compile this with nvcc, or include tests/kernels/cuda_emulator.h first"
#endif

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/cuda_kernels.h"

namespace shoal::cuda {

#ifdef __CUDACC__
// Queues kernel(args...) over `grid` blocks of `threads`; `shared_bytes` of DynamicShared() a
// block.
template <class... Parameters>
void Launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            void* stream, std::type_identity_t<Parameters>... args) {
  constexpr size_t kWithoutAsking = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kWithoutAsking) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("a CUDA kernel did not start: ") +
                             cudaGetErrorString(error));
  }
}

__device__ inline float* DynamicShared() {
  extern __shared__ float4 memory[];
  return reinterpret_cast<float*>(memory);
}
#else
using cuda_emulator::DynamicShared;
using cuda_emulator::Launch;
#endif

using Bf16 = simd::Bf16;
using Fp16 = simd::Fp16;

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(Bf16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
__device__ inline float ToFloat(Fp16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
__device__ T FromFloat(float x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else if constexpr (std::is_same_v<T, Fp16>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else {
    return x;
  }
}

// kWidth neighbours, read and written in one instruction.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
};

template <int kWidth>
struct Floats {
  float values[kWidth];
  __device__ float& operator[](int i) { return values[i]; }
  __device__ float operator[](int i) const { return values[i]; }
};

template <int kWidth, class T>
__device__ Floats<kWidth> Load(const T* from) {
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from);
  Floats<kWidth> x;
  for (int i = 0; i < kWidth; ++i) x[i] = ToFloat(pack.values[i]);
  return x;
}

template <int kWidth, class T>
__device__ void Store(T* to, const Floats<kWidth>& x) {
  Pack<T, kWidth> pack;
  for (int i = 0; i < kWidth; ++i) pack.values[i] = FromFloat<T>(x[i]);
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// Threads of a block that works on one row.
inline constexpr int kRowThreads = 256;

// The first of a thread's columns of its block's row, and the distance to the next.
template <int kWidth>
__device__ int64_t FirstColumn() {
  return static_cast<int64_t>(threadIdx.x) * kWidth;
}
template <int kWidth>
inline constexpr int64_t kColumnStep = kRowThreads* kWidth;

template <class T>
__device__ T WarpSum(T x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// The sum over a block of kRowThreads threads, in each of them.
template <class T>
__device__ T BlockSum(T x) {
  __shared__ T sums[kRowThreads / 32];
  x = WarpSum(x);
  __syncthreads();  // An earlier call's sums have been read
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  T total = 0;
  for (int warp = 0; warp < kRowThreads / 32; ++warp) total += sums[warp];
  return total;
}

__device__ inline float BlockMax(float x) {
  __shared__ float maxima[kRowThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  __syncthreads();
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = x;
  __syncthreads();
  float highest = maxima[0];
  for (int warp = 1; warp < kRowThreads / 32; ++warp) highest = fmaxf(highest, maxima[warp]);
  return highest;
}

__host__ __device__ constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline dim3 Grid(int64_t x, int64_t y = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

// Calls f(T{}) for the type's T.
template <class F>
void DispatchType(ElementType type, F&& f) {
  if (type == ElementType::kFloat32) {
    f(float{});
  } else if (type == ElementType::kBFloat16) {
    f(Bf16{});
  } else {
    f(Fp16{});
  }
}

template <int kWidth>
struct Width {
  static constexpr int value = kWidth;
};

// Calls f(T{}, Width<w>{}): w elements make 16 bytes where every pointer (null ones too) and every
// length or stride is a multiple of that, else w is 1.
template <class F>
void DispatchWidth(ElementType type, std::initializer_list<const void*> pointers,
                   std::initializer_list<int64_t> lengths, F&& f) {
  DispatchType(type, [&]<class T>(T) {
    constexpr int kWidth = 16 / sizeof(T);
    bool aligned = true;
    for (const void* pointer : pointers)
      aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    for (int64_t length : lengths) aligned = aligned && length % kWidth == 0;
    if (aligned) {
      f(T{}, Width<kWidth>{});
    } else {
      f(T{}, Width<1>{});
    }
  });
}

}  // namespace shoal::cuda
