// A sum whose order depends on the number of elements alone: each block adds kDeviceSumBlock of
// them, thread t those at t, t + kRowThreads, ..., then its threads' sums as a tree; the blocks'
// sums are added up the same way until one is left.
#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {
namespace {

__device__ inline double Squared(float x) { return static_cast<double>(x) * x; }

template <class T, bool kSquare>
__global__ void SumBlocks(const T* x, int64_t n, double* sums) {
  const int64_t first = blockIdx.x * kDeviceSumBlock;
  const int64_t end = first + kDeviceSumBlock < n ? first + kDeviceSumBlock : n;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kRowThreads) {
    if constexpr (kSquare) {
      sum += Squared(ToFloat(x[i]));
    } else {
      sum += x[i];
    }
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace

void SumOfSquares(const DeviceCall& call, const void* x, int64_t n, double* scratch,
                  double* total) {
  // One block even for nothing: its sum is zero.
  int64_t blocks = n > 0 ? CeilDivide(n, kDeviceSumBlock) : 1;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(SumBlocks<T, true>, Grid(blocks), kRowThreads, 0, call.stream, static_cast<const T*>(x),
           n, blocks == 1 ? total : scratch);
  });
  while (blocks > 1) {
    const int64_t left = CeilDivide(blocks, kDeviceSumBlock);
    Launch(SumBlocks<double, false>, Grid(left), kRowThreads, 0, call.stream, scratch, blocks,
           left == 1 ? total : scratch + blocks);
    scratch += blocks;
    blocks = left;
  }
}

}  // namespace shoal::cuda
