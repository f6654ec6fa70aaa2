// Root-mean-square norm, a row a block.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/norm_sums.h"

namespace shoal::cuda {
namespace {

template <class T, int kWidth>
__global__ void RmsNormRows(const T* x, const T* residual, const T* weight, T* sum, T* y,
                            float* rstd, int64_t columns, float epsilon) {
  const int64_t row = blockIdx.x, first = FirstColumn<kWidth>();
  x += row * columns;
  y += row * columns;
  const T* source = x;
  float squares = 0;
  if (residual) {
    residual += row * columns;
    sum += row * columns;
    source = sum;
  }
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    Floats<kWidth> s = Load<kWidth>(x + i);
    if (residual) {
      const Floats<kWidth> r = Load<kWidth>(residual + i);
      for (int j = 0; j < kWidth; ++j) s[j] = ToFloat(FromFloat<T>(s[j] + r[j]));
      Store(sum + i, s);
    }
    for (int j = 0; j < kWidth; ++j) squares += s[j] * s[j];
  }
  const float scale = 1.0f / sqrtf(BlockSum(squares) / static_cast<float>(columns) + epsilon);
  if (threadIdx.x == 0) rstd[row] = scale;
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    Floats<kWidth> s = Load<kWidth>(source + i);
    const Floats<kWidth> w = Load<kWidth>(weight + i);
    for (int j = 0; j < kWidth; ++j) s[j] = ToFloat(FromFloat<T>(s[j] * scale)) * w[j];
    Store(y + i, s);
  }
}

template <class T, int kWidth>
__global__ void RmsNormBackwardRows(const T* x, const T* weight, const float* rstd, const T* dy,
                                    const T* extra, T* dx, int64_t columns) {
  const int64_t row = blockIdx.x, first = FirstColumn<kWidth>(), at = row * columns;
  const float scale = rstd[row];
  float dot = 0;
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    const Floats<kWidth> a = Load<kWidth>(x + at + i), g = Load<kWidth>(dy + at + i),
                         w = Load<kWidth>(weight + i);
    for (int j = 0; j < kWidth; ++j) dot += g[j] * w[j] * (a[j] * scale);
  }
  const float mean = BlockSum(dot) / static_cast<float>(columns);
  for (int64_t i = first; i < columns; i += kColumnStep<kWidth>) {
    const Floats<kWidth> a = Load<kWidth>(x + at + i), w = Load<kWidth>(weight + i);
    Floats<kWidth> d = Load<kWidth>(dy + at + i);
    for (int j = 0; j < kWidth; ++j) d[j] = (d[j] * w[j] - a[j] * scale * mean) * scale;
    if (extra) {
      const Floats<kWidth> more = Load<kWidth>(extra + at + i);
      for (int j = 0; j < kWidth; ++j) d[j] += more[j];
    }
    Store(dx + at + i, d);
  }
}

}  // namespace

void RmsNorm(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* residual,
             const void* weight, void* sum, void* y, float* rstd, float epsilon) {
  if (shape.rows == 0) return;
  DispatchWidth(call.type, {x, residual, weight, sum, y}, {shape.columns},
                [&]<class T, class W>(T, W) {
                  Launch(RmsNormRows<T, W::value>, Grid(shape.rows), kRowThreads, 0, call.stream,
                         static_cast<const T*>(x), static_cast<const T*>(residual),
                         static_cast<const T*>(weight), static_cast<T*>(sum), static_cast<T*>(y),
                         rstd, shape.columns, epsilon);
                });
}

void RmsNormBackward(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* weight,
                     const float* rstd, const void* dy, const void* extra, void* dx,
                     float* grad_weight) {
  if (shape.rows == 0) return;
  DispatchWidth(call.type, {x, weight, dy, extra, dx}, {shape.columns},
                [&]<class T, class W>(T, W) {
                  Launch(RmsNormBackwardRows<T, W::value>, Grid(shape.rows), kRowThreads, 0,
                         call.stream, static_cast<const T*>(x), static_cast<const T*>(weight), rstd,
                         static_cast<const T*>(dy), static_cast<const T*>(extra),
                         static_cast<T*>(dx), shape.columns);
                  LaunchNormWeightSums<T>(call.stream, shape, static_cast<const T*>(x), nullptr,
                                          rstd, static_cast<const T*>(dy), grad_weight, nullptr);
                });
}

}  // namespace shoal::cuda
