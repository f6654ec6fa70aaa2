#include "trainer/rlhf/kl_estimators.h"

#include <ATen/ATen.h>

#include "trainer/rlhf/policy_losses.h"

namespace shoal {

using at::Tensor;

Tensor KlEstimate(KlEstimator estimator, const Tensor& logprobs_BT,
                  const Tensor& reference_logprobs_BT) {
  const Tensor x_BT = reference_logprobs_BT - logprobs_BT;
  switch (estimator) {
    case KlEstimator::kK1:
      return -x_BT;
    case KlEstimator::kK2:
      return x_BT.square() / 2;
    case KlEstimator::kK3:
      break;
  }
  return at::expm1(x_BT) - x_BT;
}

Tensor KlPenalty(const Tensor& logprobs_BT, const Tensor& old_logprobs_BT,
                 const Tensor& reference_logprobs_BT, const KlPenaltyOptions& options) {
  const Tensor value_BT = KlEstimate(options.estimator, logprobs_BT, reference_logprobs_BT);
  if (!options.unbiased_gradient) return value_BT;
  const Tensor weight_BT =
      (ClampedRatio(logprobs_BT, old_logprobs_BT) * (logprobs_BT - reference_logprobs_BT)).detach();
  const Tensor carrier_BT = weight_BT * logprobs_BT;
  return value_BT.detach() + carrier_BT - carrier_BT.detach();
}

}  // namespace shoal
