// Update rules over flat buffers, an element a thread.
#include "kernels/cuda/update_rules.h"

namespace shoal::cuda {
namespace {

// Updates element i of a step, whose scaled gradient is g.
struct AdamWRule {
  simd::AdamWScalars s;
  __device__ void operator()(const DeviceStep& step, int64_t i, float gradient) const {
    const AdamWMoments moments = NextMoments(s, {step.moment1[i], step.moment2[i]}, gradient);
    const float w = NextWeight(s, step.weights[i], moments);
    step.moment1[i] = moments.first;
    step.moment2[i] = moments.second;
    step.weights[i] = w;
    PutCopy(step.copy, step.copy_type, i, w);
  }
};

struct SgdRule {
  simd::SgdScalars s;
  __device__ void operator()(const DeviceStep& step, int64_t i, float gradient) const {
    float w = step.weights[i];
    float g = gradient * s.grad_scale + w * s.weight_decay;
    if (step.moment1) {
      const float m = s.first_step ? g : step.moment1[i] * s.momentum + g;
      step.moment1[i] = m;
      g = s.nesterov ? g + m * s.momentum : m;
    }
    w -= g * s.learning_rate;
    step.weights[i] = w;
    PutCopy(step.copy, step.copy_type, i, w);
  }
};

struct LionRule {
  LionScalars s;
  __device__ void operator()(const DeviceStep& step, int64_t i, float gradient) const {
    const float g = gradient * s.grad_scale, m = step.moment1[i];
    const float direction = s.beta1 * m + (1 - s.beta1) * g;
    const float sign = static_cast<float>((direction > 0) - (direction < 0));
    const float w = step.weights[i] * s.keep - s.learning_rate * sign;
    step.weights[i] = w;
    step.moment1[i] = s.beta2 * m + (1 - s.beta2) * g;
    PutCopy(step.copy, step.copy_type, i, w);
  }
};

template <class T, class Rule>
__global__ void UpdateElements(DeviceStep step, Rule rule) {
  const int64_t i = blockIdx.x * kColumnStep<1> + FirstColumn<1>();
  if (i < step.n) rule(step, i, ToFloat(static_cast<const T*>(step.gradients)[i]));
}

template <class Rule>
void Update(const DeviceCall& call, const DeviceStep& step, const Rule& rule) {
  if (step.n == 0) return;
  DispatchType(call.type, [&]<class T>(T) {
    Launch(UpdateElements<T, Rule>, Grid(CeilDivide(step.n, kRowThreads)), kRowThreads, 0,
           call.stream, step, rule);
  });
}

}  // namespace

void AdamW(const DeviceCall& call, const DeviceStep& step, const simd::AdamWScalars& scalars) {
  Update(call, step, AdamWRule{scalars});
}

void Sgd(const DeviceCall& call, const DeviceStep& step, const simd::SgdScalars& scalars) {
  Update(call, step, SgdRule{scalars});
}

void Lion(const DeviceCall& call, const DeviceStep& step, const LionScalars& scalars) {
  Update(call, step, LionRule{scalars});
}

}  // namespace shoal::cuda
