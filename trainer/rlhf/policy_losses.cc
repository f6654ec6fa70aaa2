#include "trainer/rlhf/policy_losses.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace shoal {

using at::Tensor;

namespace {

Tensor Clamped(const Tensor& logratio) { return logratio.clamp(-20, 20); }

PolicyLoss Clip(const Tensor& ratio_BT, const Tensor& advantages_BT, const ClipOptions& options) {
  const Tensor plain_BT = -advantages_BT * ratio_BT;
  const Tensor held_BT = -advantages_BT * ratio_BT.clamp(1 - options.low, 1 + options.high);
  PolicyLoss loss{.loss_BT = at::maximum(plain_BT, held_BT),
                  .ratio_BT = ratio_BT.detach(),
                  .clipped_BT = held_BT.detach() > plain_BT.detach()};
  if (options.dual > 0) {
    loss.loss_BT = at::where(
        advantages_BT < 0, at::minimum(loss.loss_BT, -options.dual * advantages_BT), loss.loss_BT);
  }
  return loss;
}

}  // namespace

Tensor ClampedRatio(const Tensor& logprobs_BT, const Tensor& old_logprobs_BT) {
  return at::exp(Clamped(logprobs_BT - old_logprobs_BT));
}

PolicyLoss PpoClipLoss(const Tensor& logprobs_BT, const Tensor& old_logprobs_BT,
                       const Tensor& advantages_BT, const ClipOptions& options) {
  return Clip(ClampedRatio(logprobs_BT, old_logprobs_BT), advantages_BT, options);
}

PolicyLoss GspoLoss(const Tensor& logprobs_BT, const Tensor& old_logprobs_BT,
                    const Tensor& advantages_BT, const Tensor& mask_BT,
                    const ClipOptions& options) {
  const Tensor mask = mask_BT.to(logprobs_BT.scalar_type());
  const Tensor mean_B1 = ((logprobs_BT - old_logprobs_BT) * mask).sum(1, /*keepdim=*/true) /
                         mask.sum(1, /*keepdim=*/true).clamp_min(1);
  // The sequence's value, each token's own gradient.
  const Tensor carried_BT = mean_B1.detach() + logprobs_BT - logprobs_BT.detach();
  return Clip(at::exp(Clamped(carried_BT)), advantages_BT, options);
}

Tensor ValueLoss(const Tensor& values_BT, const Tensor& old_values_BT, const Tensor& returns_BT,
                 double clip) {
  const Tensor plain_BT = (values_BT - returns_BT).square();
  if (clip == 0) return plain_BT / 2;
  const Tensor held_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip);
  return at::maximum(plain_BT, (held_BT - returns_BT).square()) / 2;
}

Tensor LossWeights(const Tensor& mask_BT, LossAggregation aggregation, int64_t maximum_length) {
  const Tensor mask = mask_BT.to(at::kDouble);
  switch (aggregation) {
    case LossAggregation::kTokenMean:
      return mask * (static_cast<double>(mask.size(0)) / mask.sum().clamp_min(1));
    case LossAggregation::kSequenceMean:
      return mask / mask.sum(1, /*keepdim=*/true).clamp_min(1);
    case LossAggregation::kMaximumLength:
      break;
  }
  return mask / static_cast<double>(maximum_length);
}

}  // namespace shoal
