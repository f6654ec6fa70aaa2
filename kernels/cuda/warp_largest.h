// Largest magnitudes that do not lose a NaN.
#pragma once

#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {

// NaN if either is.
__device__ inline float Larger(float a, float b) { return b > a || b != b ? b : a; }

// Of a warp, in each of its lanes.
__device__ inline float WarpLargest(float x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x = Larger(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

}  // namespace shoal::cuda
