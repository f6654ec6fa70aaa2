// Arithmetic of update rules on one element.
#pragma once

#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {

struct AdamWMoments {
  float first, second;
};

__device__ inline AdamWMoments NextMoments(const simd::AdamWScalars& s, AdamWMoments moments,
                                           float gradient) {
  const float g = gradient * s.grad_scale;
  return {moments.first + (g - moments.first) * s.one_minus_beta1,
          moments.second * s.beta2 + g * g * s.one_minus_beta2};
}

__device__ inline float NextWeight(const simd::AdamWScalars& s, float weight,
                                   const AdamWMoments& moments) {
  const float denominator = sqrtf(moments.second) * s.inverse_sqrt_correction2 + s.epsilon;
  return weight * s.decay - s.step_size * (moments.first / denominator);
}

// The rounded weight, where a copy is kept.
__device__ inline void PutCopy(void* copy, ElementType type, int64_t i, float weight) {
  if (!copy) return;
  if (type == ElementType::kFloat32) {
    static_cast<float*>(copy)[i] = weight;
  } else if (type == ElementType::kBFloat16) {
    static_cast<Bf16*>(copy)[i] = FromFloat<Bf16>(weight);
  } else {
    static_cast<Fp16*>(copy)[i] = FromFloat<Fp16>(weight);
  }
}

}  // namespace shoal::cuda
