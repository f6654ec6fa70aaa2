// Dropout, a row a block.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/threefry.h"

namespace shoal::cuda {
namespace {

template <class T, int kWidth>
__global__ void DropoutRows(DeviceDropout d) {
  const int64_t row = blockIdx.x, at = row * d.shape.columns;
  const uint64_t key = static_cast<uint64_t>(d.keys[row]);
  const uint32_t place = static_cast<uint32_t>(d.places[row]);
  for (int64_t i = FirstColumn<kWidth>(); i < d.shape.columns; i += kColumnStep<kWidth>) {
    Floats<kWidth> x = Load<kWidth>(static_cast<const T*>(d.x) + at + i);
    for (int j = 0; j < kWidth; ++j) {
      const bool kept = ThreefryWord(key, place, static_cast<uint32_t>(i + j)) >= d.threshold;
      x[j] = kept ? x[j] * d.scale : 0.0f;  // Not a product: what is dropped may be infinite
    }
    Store(static_cast<T*>(d.y) + at + i, x);
  }
}

}  // namespace

void Dropout(const DeviceCall& call, const DeviceDropout& dropout) {
  if (dropout.shape.rows == 0) return;
  DispatchWidth(call.type, {dropout.x, dropout.y}, {dropout.shape.columns},
                [&]<class T, class W>(T, W) {
                  Launch(DropoutRows<T, W::value>, Grid(dropout.shape.rows), kRowThreads, 0,
                         call.stream, dropout);
                });
}

}  // namespace shoal::cuda
