// How far the policy has moved from its reference, estimated from the tokens that it sampled: pure
// functions, a number a token, of shape (B, T).
//
// With x = log reference - log pi (Schulman 2020, "Approximating KL Divergence"):
//   k1 = -x          unbiased, may be negative; what a per-token penalty in the reward takes
//   k2 = x^2 / 2     biased; its gradient is that of KL(pi || reference) on the policy's own
//   samples k3 = e^x - 1 - x unbiased, never negative; GRPO's (Shao et al. 2024, eq. 4)
// The gradient of the value is another matter: that of k1 is 0 in the mean, that of k3 follows
// KL(reference || pi). KlPenalty below keeps the value and takes the right gradient.
#pragma once

#include <ATen/core/Tensor.h>

namespace shoal {

enum class KlEstimator { kK1, kK2, kK3 };

at::Tensor KlEstimate(KlEstimator estimator, const at::Tensor& logprobs_BT,
                      const at::Tensor& reference_logprobs_BT);

struct KlPenaltyOptions {
  KlEstimator estimator = KlEstimator::kK3;
  // The gradient is w (log pi - log reference) grad log pi with w = pi / old, which has the mean
  // grad KL(pi || reference) over samples of `old`. false: the estimator's own gradient, as in the
  // GRPO paper.
  bool unbiased_gradient = true;
};
// KlEstimate as a loss. `old_logprobs_BT` are of the policy that sampled the tokens.
at::Tensor KlPenalty(const at::Tensor& logprobs_BT, const at::Tensor& old_logprobs_BT,
                     const at::Tensor& reference_logprobs_BT, const KlPenaltyOptions& options);

}  // namespace shoal
