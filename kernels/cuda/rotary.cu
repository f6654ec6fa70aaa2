// Rotary positions, a token a block.
#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {
namespace {

template <class T>
__global__ void RotateTokens(DeviceRotary r) {
  const int64_t token = blockIdx.x, position = r.positions[token];
  const bool known = 0 <= position && position < r.num_positions;
  const T* x = static_cast<const T*>(r.x) + token / r.length * r.batch_stride +
               token % r.length * r.token_stride;
  T* y = static_cast<T*>(r.y) + token * r.heads * 2 * r.half;
  const int half = static_cast<int>(r.half), pairs = static_cast<int>(r.heads) * half;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kRowThreads) {
    const int64_t head = i / half, pair = i % half;  // 32-bit division: the cheap one
    const float cos = known ? r.cos[position * r.half + pair] : NAN;
    const float sin = known ? r.sin[position * r.half + pair] * r.direction : NAN;
    const float low = ToFloat(x[head * r.head_stride + pair]);
    const float high = ToFloat(x[head * r.head_stride + r.half + pair]);
    y[head * 2 * r.half + pair] = FromFloat<T>(low * cos - high * sin);
    y[head * 2 * r.half + r.half + pair] = FromFloat<T>(high * cos + low * sin);
  }
}

}  // namespace

void Rotary(const DeviceCall& call, const DeviceRotary& rotary) {
  if (rotary.batch * rotary.length == 0) return;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(RotateTokens<T>, Grid(rotary.batch * rotary.length), kRowThreads, 0, call.stream,
           rotary);
  });
}

}  // namespace shoal::cuda
