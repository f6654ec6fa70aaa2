// The cross entropy's gradient of logits, a row a block: a pass that finds the row's largest entry
// and its sum of exponentials together (Milakov & Gimelshein 2018), and one that writes.
#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {
namespace {

// The sum of exp(x - maximum) over the entries met.
struct RunningSum {
  float maximum = -INFINITY, sum = 0;
  __device__ void Add(float x) {
    if (x > maximum) {
      sum = sum * expf(maximum - x) + 1.0f;
      maximum = x;
    } else if (x != -INFINITY) {  // NaN comes here
      sum += expf(x - maximum);
    }
  }
};

template <class T>
__global__ void SoftmaxGradientRows(DeviceSoftmax s) {
  const int64_t row = blockIdx.x, columns = s.shape.columns, target = s.targets[row];
  const float* logits = s.logits + row * columns;
  T* gradient = s.gradient ? static_cast<T*>(s.gradient) + row * columns : nullptr;
  if (target == s.ignore_index) {
    if (threadIdx.x == 0) s.logprobs[row] = 0;
    if (!gradient) return;
    for (int64_t i = threadIdx.x; i < columns; i += kRowThreads) gradient[i] = FromFloat<T>(0);
    return;
  }
  const float logit = 0 <= target && target < columns ? logits[target] : NAN;
  RunningSum own;
  for (int64_t i = threadIdx.x; i < columns; i += kRowThreads) own.Add(logits[i]);
  // Also orders every thread's reading of the target's logit before anyone's writing.
  const float highest = BlockMax(own.maximum);
  const float sum =
      BlockSum(own.maximum == -INFINITY ? own.sum : own.sum * expf(own.maximum - highest));
  if (threadIdx.x == 0) s.logprobs[row] = logit - (highest + logf(sum));
  if (!gradient) return;
  // A target outside the vocabulary spoils its row rather than counting as none.
  const float scale = logit != logit ? NAN : s.scales[row];
  const float factor = scale / sum;
  for (int64_t i = threadIdx.x; i < columns; i += kRowThreads) {
    const float share = expf(logits[i] - highest) * factor;
    gradient[i] = FromFloat<T>(i == target ? share - scale : share);
  }
}

}  // namespace

void SoftmaxGradient(const DeviceCall& call, const DeviceSoftmax& softmax) {
  if (softmax.shape.rows == 0) return;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(SoftmaxGradientRows<T>, Grid(softmax.shape.rows), kRowThreads, 0, call.stream, softmax);
  });
}

}  // namespace shoal::cuda
