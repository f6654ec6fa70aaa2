#include "trainer/rlhf/policy_objective.h"

#include <ATen/ATen.h>

#include "trainer/rlhf/rollout.h"

namespace shoal {
namespace {

// A tensor of the batch in the dtype that the head computes in; undefined if there is none.
Tensor Carried(const Batch& batch, const char* name, const Tensor& like) {
  const auto found = batch.named.find(name);
  return found == batch.named.end() ? Tensor() : found->second.to(like.options());
}

Tensor Targets(const Batch& batch) { return batch.targets_BT != Batch::kIgnoreIndex; }

// The sum over the targets' places.
Tensor SumAt(const Tensor& mask_BT, const Tensor& values_BT) {
  return at::where(mask_BT, values_BT.detach(), at::zeros_like(values_BT)).sum(at::kDouble);
}

}  // namespace

std::vector<std::string> PolicyObjective::metric_names() const {
  return {"ratio", "clip_fraction", "approx_kl", "kl", "logprob_error"};
}

Tensor PolicyObjective::Loss(const Batch& batch, const Activations& head,
                             ObjectiveMetrics& metrics) const {
  const Tensor& logprobs_BT = head.logprobs_BT;
  const Tensor mask_BT = Targets(batch), advantages_BT = Carried(batch, kAdvantages, logprobs_BT),
               weights_BT = Carried(batch, kLossWeights, logprobs_BT);
  Tensor old_BT = Carried(batch, kOldLogprobs, logprobs_BT);
  if (!old_BT.defined()) old_BT = logprobs_BT.detach();

  const PolicyLoss policy =
      options_.gspo ? GspoLoss(logprobs_BT, old_BT, advantages_BT, mask_BT, options_.clip)
                    : PpoClipLoss(logprobs_BT, old_BT, advantages_BT, options_.clip);
  Tensor loss_BT = policy.loss_BT;
  const double count = static_cast<double>(batch.num_targets);
  metrics.Add("ratio", SumAt(mask_BT, policy.ratio_BT), count);
  metrics.Add("clip_fraction", SumAt(mask_BT, policy.clipped_BT.to(logprobs_BT.scalar_type())),
              count);
  metrics.Add("approx_kl",
              SumAt(mask_BT, KlEstimate(KlEstimator::kK3, old_BT, logprobs_BT.detach())), count);
  if (const Tensor reference_BT = Carried(batch, kReferenceLogprobs, logprobs_BT);
      reference_BT.defined()) {
    metrics.Add("kl",
                SumAt(mask_BT, KlEstimate(KlEstimator::kK3, logprobs_BT.detach(), reference_BT)),
                count);
    if (options_.kl_coef > 0) {
      loss_BT =
          loss_BT + options_.kl_coef * KlPenalty(logprobs_BT, old_BT, reference_BT, options_.kl);
    }
  }
  if (const Tensor rollout_BT = Carried(batch, kRolloutLogprobs, logprobs_BT);
      rollout_BT.defined()) {
    metrics.Add("logprob_error",
                SumAt(mask_BT, at::expm1((logprobs_BT.detach() - rollout_BT).abs())), count);
  }
  return at::where(mask_BT, weights_BT * loss_BT, at::zeros_like(loss_BT)).sum();
}

Tensor ValueObjective::Loss(const Batch& batch, const Activations& head,
                            ObjectiveMetrics& metrics) const {
  const Tensor& values_BT = head.scores_BT;
  const Tensor mask_BT = Targets(batch), returns_BT = Carried(batch, kReturns, values_BT);
  const Tensor loss_BT =
      ValueLoss(values_BT, Carried(batch, kOldValues, values_BT), returns_BT, clip_);
  const double count = static_cast<double>(batch.num_targets);
  metrics.Add("value", SumAt(mask_BT, values_BT), count);
  metrics.Add("value_error", SumAt(mask_BT, (values_BT - returns_BT).square()), count);
  return at::where(mask_BT, Carried(batch, kLossWeights, values_BT) * loss_BT,
                   at::zeros_like(loss_BT))
      .sum();
}

}  // namespace shoal
