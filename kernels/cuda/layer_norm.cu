// Layer norm, a row a block.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/norm_sums.h"

namespace shoal::cuda {
namespace {

template <class T, int kWidth>
__global__ void LayerNormRows(const T* x, const T* weight, const T* bias, T* y, float* mean,
                              float* rstd, int64_t columns, float epsilon) {
  const int64_t row = blockIdx.x, first = FirstColumn<kWidth>(), at = row * columns;
  const float count = static_cast<float>(columns);
  float total = 0;
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    const Floats<kWidth> a = Load<kWidth>(x + at + i);
    for (int j = 0; j < kWidth; ++j) total += a[j];
  }
  const float center = BlockSum(total) / count;
  float squares = 0;
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    const Floats<kWidth> a = Load<kWidth>(x + at + i);
    for (int j = 0; j < kWidth; ++j) squares += (a[j] - center) * (a[j] - center);
  }
  const float scale = 1.0f / sqrtf(BlockSum(squares) / count + epsilon);
  if (threadIdx.x == 0) {
    mean[row] = center;
    rstd[row] = scale;
  }
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    Floats<kWidth> a = Load<kWidth>(x + at + i);
    const Floats<kWidth> w = Load<kWidth>(weight + i), b = Load<kWidth>(bias + i);
    for (int j = 0; j < kWidth; ++j) a[j] = (a[j] - center) * scale * w[j] + b[j];
    Store(y + at + i, a);
  }
}

template <class T, int kWidth>
__global__ void LayerNormBackwardRows(const T* x, const T* weight, const float* mean,
                                      const float* rstd, const T* dy, T* dx, int64_t columns) {
  const int64_t row = blockIdx.x, first = FirstColumn<kWidth>(), at = row * columns;
  const float center = mean[row], scale = rstd[row], count = static_cast<float>(columns);
  float dot = 0, total = 0;
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    const Floats<kWidth> a = Load<kWidth>(x + at + i), g = Load<kWidth>(dy + at + i),
                         w = Load<kWidth>(weight + i);
    for (int j = 0; j < kWidth; ++j) {
      dot += g[j] * w[j] * ((a[j] - center) * scale);
      total += g[j] * w[j];
    }
  }
  const float mean_dot = BlockSum(dot) / count, mean_total = BlockSum(total) / count;
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    const Floats<kWidth> a = Load<kWidth>(x + at + i), w = Load<kWidth>(weight + i);
    Floats<kWidth> d = Load<kWidth>(dy + at + i);
    for (int j = 0; j < kWidth; ++j)
      d[j] = (d[j] * w[j] - mean_total - (a[j] - center) * scale * mean_dot) * scale;
    Store(dx + at + i, d);
  }
}

}  // namespace

void LayerNorm(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* weight,
               const void* bias, void* y, float* mean, float* rstd, float epsilon) {
  if (shape.rows == 0) return;
  DispatchWidth(call.type, {x, weight, bias, y}, {shape.columns}, [&]<class T, class W>(T, W) {
    Launch(LayerNormRows<T, W::value>, Grid(shape.rows), kRowThreads, 0, call.stream,
           static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(bias),
           static_cast<T*>(y), mean, rstd, shape.columns, epsilon);
  });
}

void LayerNormBackward(const DeviceCall& call, DeviceMatrix shape, const void* x,
                       const void* weight, const float* mean, const float* rstd, const void* dy,
                       void* dx, float* grad_weight, float* grad_bias) {
  if (shape.rows == 0) return;
  DispatchWidth(call.type, {x, weight, dy, dx}, {shape.columns}, [&]<class T, class W>(T, W) {
    Launch(LayerNormBackwardRows<T, W::value>, Grid(shape.rows), kRowThreads, 0, call.stream,
           static_cast<const T*>(x), static_cast<const T*>(weight), mean, rstd,
           static_cast<const T*>(dy), static_cast<T*>(dx), shape.columns);
    LaunchNormWeightSums<T>(call.stream, shape, static_cast<const T*>(x), mean, rstd,
                            static_cast<const T*>(dy), grad_weight, grad_bias);
  });
}

}  // namespace shoal::cuda
