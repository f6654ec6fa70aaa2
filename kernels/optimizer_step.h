// Optimizer arithmetic over flat buffers, one pass over memory. All tensors are contiguous and of
// one length n; the n elements of a call share their options.
#pragma once

#include <cstdint>

#include "core/parameter.h"
#include "kernels/simd/kernel_table.h"

namespace shoal {

struct AdamWOptions {
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1.0;  // Gradients are multiplied by this first (clipping)
  int64_t step = 1;         // 1 on the first update
};

// Decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2), rounded like torch.optim.AdamW:
//   w -= lr * wd * w;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
// weights, moment1, moment2: float32 or float64; grads: that dtype or bfloat16.
// compute_copy: undefined, or (n) of the compute dtype that receives the rounded weights in the
// same pass.
void AdamWStep(Tensor& weights, const Tensor& grads, Tensor& moment1, Tensor& moment2,
               Tensor& compute_copy, const AdamWOptions& options);

// The same as the kernels take them.
simd::AdamWScalars AdamWScalarsOf(const AdamWOptions& options);

struct SgdOptions {
  double learning_rate = 0;
  double momentum = 0;
  double weight_decay = 0;  // Added to the gradient, as in torch.optim.SGD
  bool nesterov = false;
  double grad_scale = 1.0;
  int64_t step = 1;  // On the first step the momentum buffer is the gradient
};

// momentum: undefined iff options.momentum == 0.
void SgdStep(Tensor& weights, const Tensor& grads, Tensor& momentum, Tensor& compute_copy,
             const SgdOptions& options);

// Sum of squares in float64, in an order that depends on n alone (blocks of 4096, added in order),
// so that it is the same on any rank and thread count. Inf and NaN propagate.
double SumOfSquares(const Tensor& values);

// The same as a () float64 tensor on values' device, without waiting for it. On another device than
// the CPU the order is that device's own, fixed as well.
Tensor SumOfSquaresOf(const Tensor& values);

}  // namespace shoal
