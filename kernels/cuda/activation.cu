// SwiGLU, a row a block, and GELU, a run of elements a block.
#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {
namespace {

__device__ inline float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class T, int kWidth>
__global__ void SwiGluRows(const T* gate, int64_t gate_stride, const T* up, int64_t up_stride, T* y,
                           int64_t columns) {
  const int64_t row = blockIdx.x;
  for (int64_t i = FirstColumn<kWidth>(); i < columns; i += kColumnStep<kWidth>) {
    Floats<kWidth> g = Load<kWidth>(gate + row * gate_stride + i);
    const Floats<kWidth> u = Load<kWidth>(up + row * up_stride + i);
    for (int j = 0; j < kWidth; ++j) g[j] = g[j] * Sigmoid(g[j]) * u[j];
    Store(y + row * columns + i, g);
  }
}

template <class T, int kWidth>
__global__ void SwiGluBackwardRows(const T* gate, int64_t gate_stride, const T* up,
                                   int64_t up_stride, const T* dy, T* dgate, int64_t dgate_stride,
                                   T* dup, int64_t dup_stride, int64_t columns) {
  const int64_t row = blockIdx.x;
  for (int64_t i = FirstColumn<kWidth>(); i < columns; i += kColumnStep<kWidth>) {
    Floats<kWidth> g = Load<kWidth>(gate + row * gate_stride + i);
    Floats<kWidth> u = Load<kWidth>(up + row * up_stride + i);
    const Floats<kWidth> d = Load<kWidth>(dy + row * columns + i);
    for (int j = 0; j < kWidth; ++j) {
      const float sigmoid = Sigmoid(g[j]), silu = g[j] * sigmoid;
      g[j] = d[j] * u[j] * (sigmoid + silu * (1.0f - sigmoid));
      u[j] = d[j] * silu;
    }
    Store(dgate + row * dgate_stride + i, g);
    Store(dup + row * dup_stride + i, u);
  }
}

constexpr float kSqrtTwoOverPi = 0.7978845608f, kCubic = 0.044715f;

__device__ inline float NormalCdf(float x) { return 0.5f * (1.0f + erff(0.70710678f * x)); }

__device__ inline float TanhOfCubic(float x) {
  return tanhf(kSqrtTwoOverPi * (x + kCubic * x * x * x));
}

template <class T, int kWidth>
__global__ void GeluRun(const T* x, T* y, int64_t n, bool tanh) {
  const int64_t i = blockIdx.x * kColumnStep<kWidth> + FirstColumn<kWidth>();
  if (i >= n) return;
  Floats<kWidth> a = Load<kWidth>(x + i);
  for (int j = 0; j < kWidth; ++j) a[j] *= tanh ? 0.5f + 0.5f * TanhOfCubic(a[j]) : NormalCdf(a[j]);
  Store(y + i, a);
}

template <class T, int kWidth>
__global__ void GeluBackwardRun(const T* x, const T* dy, T* dx, int64_t n, bool tanh) {
  const int64_t i = blockIdx.x * kColumnStep<kWidth> + FirstColumn<kWidth>();
  if (i >= n) return;
  const Floats<kWidth> a = Load<kWidth>(x + i);
  Floats<kWidth> d = Load<kWidth>(dy + i);
  for (int j = 0; j < kWidth; ++j) {
    const float v = a[j];
    if (tanh) {
      const float t = TanhOfCubic(v);
      const float inner = kSqrtTwoOverPi * (1.0f + 3.0f * kCubic * v * v);
      d[j] *= 0.5f + 0.5f * t + 0.5f * v * (1.0f - t * t) * inner;
    } else {
      d[j] *= NormalCdf(v) + v * 0.3989422804f * expf(-0.5f * v * v);
    }
  }
  Store(dx + i, d);
}

}  // namespace

void SwiGlu(const DeviceCall& call, DeviceMatrix shape, const void* gate, int64_t gate_stride,
            const void* up, int64_t up_stride, void* y) {
  if (shape.rows == 0) return;
  DispatchWidth(call.type, {gate, up, y}, {shape.columns, gate_stride, up_stride},
                [&]<class T, class W>(T, W) {
                  Launch(SwiGluRows<T, W::value>, Grid(shape.rows), kRowThreads, 0, call.stream,
                         static_cast<const T*>(gate), gate_stride, static_cast<const T*>(up),
                         up_stride, static_cast<T*>(y), shape.columns);
                });
}

void SwiGluBackward(const DeviceCall& call, DeviceMatrix shape, const void* gate,
                    int64_t gate_stride, const void* up, int64_t up_stride, const void* dy,
                    void* dgate, int64_t dgate_stride, void* dup, int64_t dup_stride) {
  if (shape.rows == 0) return;
  DispatchWidth(call.type, {gate, up, dy, dgate, dup},
                {shape.columns, gate_stride, up_stride, dgate_stride, dup_stride},
                [&]<class T, class W>(T, W) {
                  Launch(SwiGluBackwardRows<T, W::value>, Grid(shape.rows), kRowThreads, 0,
                         call.stream, static_cast<const T*>(gate), gate_stride,
                         static_cast<const T*>(up), up_stride, static_cast<const T*>(dy),
                         static_cast<T*>(dgate), dgate_stride, static_cast<T*>(dup), dup_stride,
                         shape.columns);
                });
}

void Gelu(const DeviceCall& call, const void* x, void* y, int64_t n, bool tanh) {
  if (n == 0) return;
  DispatchWidth(call.type, {x, y}, {n}, [&]<class T, class W>(T, W) {
    Launch(GeluRun<T, W::value>, Grid(CeilDivide(n, kColumnStep<W::value>)), kRowThreads, 0,
           call.stream, static_cast<const T*>(x), static_cast<T*>(y), n, tanh);
  });
}

void GeluBackward(const DeviceCall& call, const void* x, const void* dy, void* dx, int64_t n,
                  bool tanh) {
  if (n == 0) return;
  DispatchWidth(call.type, {x, dy, dx}, {n}, [&]<class T, class W>(T, W) {
    Launch(GeluBackwardRun<T, W::value>, Grid(CeilDivide(n, kColumnStep<W::value>)), kRowThreads, 0,
           call.stream, static_cast<const T*>(x), static_cast<const T*>(dy), static_cast<T*>(dx), n,
           tanh);
  });
}

}  // namespace shoal::cuda
