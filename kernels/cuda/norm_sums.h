// Gradients of a norm's weights, a piece of rows at a time.
#pragma once

#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {

// Block (piece, run of columns): grad_weight[piece] = the sum over the piece's rows of dy times the
// normalised x, grad_bias[piece] that of dy; either may be null. A null mean is zero.
template <class T>
__global__ void NormWeightSums(const T* x, const float* mean, const float* rstd, const T* dy,
                               float* grad_weight, float* grad_bias, int64_t rows,
                               int64_t columns) {
  const int64_t piece = blockIdx.x;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x;
  if (column >= columns) return;
  const int64_t first = piece * kDevicePieceRows;
  const int64_t end = first + kDevicePieceRows < rows ? first + kDevicePieceRows : rows;
  float weight_sum = 0, bias_sum = 0;
  for (int64_t row = first; row < end; ++row) {
    const float g = ToFloat(dy[row * columns + column]);
    const float center = mean ? mean[row] : 0.0f;
    weight_sum += g * ((ToFloat(x[row * columns + column]) - center) * rstd[row]);
    bias_sum += g;
  }
  if (grad_weight) grad_weight[piece * columns + column] = weight_sum;
  if (grad_bias) grad_bias[piece * columns + column] = bias_sum;
}

template <class T>
void LaunchNormWeightSums(void* stream, DeviceMatrix shape, const T* x, const float* mean,
                          const float* rstd, const T* dy, float* grad_weight, float* grad_bias) {
  if (!grad_weight && !grad_bias) return;
  Launch(NormWeightSums<T>, Grid(DevicePieces(shape.rows), CeilDivide(shape.columns, kRowThreads)),
         kRowThreads, 0, stream, x, mean, rstd, dy, grad_weight, grad_bias, shape.rows,
         shape.columns);
}

}  // namespace shoal::cuda
