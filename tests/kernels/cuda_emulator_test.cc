// The emulator itself: what threads say to each other, and the mistakes that it finds.
#include "tests/kernels/cuda_emulator.h"

#include <vector>

#include <gtest/gtest.h>

namespace {

using cuda_emulator::DynamicShared;
using cuda_emulator::Launch;

// Each thread's number, turned round within its block by way of shared memory.
void Reverse(int* out, int threads) {
  float* const shared = DynamicShared();
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[blockIdx.x * threads + threadIdx.x] = static_cast<int>(shared[threads - 1 - threadIdx.x]);
}

void SumWarps(int* out) {
  int x = static_cast<int>(threadIdx.x);
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  out[threadIdx.x] = x;
}

void SkipShuffle(int* out) {
  if (threadIdx.x != 3) out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}

void TwoBarriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

void EarlyExit(int* out) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

void PastTheEnd(int* out) { DynamicShared()[64 + threadIdx.x % 2] = static_cast<float>(out[0]); }

TEST(CudaEmulatorTest, BarriersAndShuffles) {
  std::vector<int> out(192);
  Launch(Reverse, dim3(3), 64, 64 * sizeof(float), nullptr, out.data(), 64);
  for (int i = 0; i < 192; ++i) EXPECT_EQ(out[i], 63 - i % 64);
  Launch(SumWarps, dim3(1), 64, 0, nullptr, out.data());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], i < 32 ? 496 : 496 + 32 * 32);
  Launch(EarlyExit, dim3(1), 64, 0, nullptr, out.data());
  EXPECT_EQ(out[31], 1);
}

TEST(CudaEmulatorTest, TellsWhenMemoryIsTouched) {
  std::vector<bool> calls;
  std::vector<int> out(64);
  cuda_emulator::SetMemoryGuard([&](bool open) { calls.push_back(open); });
  Launch(SumWarps, dim3(1), 64, 0, nullptr, out.data());
  cuda_emulator::SetMemoryGuard({});
  EXPECT_EQ(calls, (std::vector<bool>{true, false}));
}

TEST(CudaEmulatorDeathTest, StopsAtMistakes) {
  std::vector<int> out(64);
  EXPECT_DEATH(Launch(SkipShuffle, dim3(1), 64, 0, nullptr, out.data()), "do not come");
  EXPECT_DEATH(Launch(TwoBarriers, dim3(1), 64, 0, nullptr, out.data()), "different barriers");
  EXPECT_DEATH(Launch(PastTheEnd, dim3(1), 64, 64 * sizeof(float), nullptr, out.data()),
               "past its end");
}

}  // namespace
