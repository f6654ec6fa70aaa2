#include "trainer/objectives/preference_objective.h"

#include <ATen/ATen.h>

#include "core/status.h"
#include "trainer/rlhf/preference_losses.h"

namespace shoal {
namespace {

constexpr char kAccuracy[] = "rewards_accuracy", kMargin[] = "rewards_margin",
               kChosenReward[] = "rewards_chosen", kRejectedReward[] = "rewards_rejected",
               kChosenLogprob[] = "logprobs_chosen", kRejectedLogprob[] = "logprobs_rejected";

// Of (B), one entry a pair.
Tensor Chosen(const Tensor& x_B) { return x_B.view({-1, 2}).select(1, 0); }
Tensor Rejected(const Tensor& x_B) { return x_B.view({-1, 2}).select(1, 1); }

}  // namespace

Tensor SequenceLogprobs(const Tensor& logprobs_BT) { return logprobs_BT.sum(1); }

std::vector<std::string> PreferenceObjective::metric_names() const {
  return {kAccuracy, kMargin, kChosenReward, kRejectedReward, kChosenLogprob, kRejectedLogprob};
}

double PreferenceObjective::Count(const Batch& batch) const {
  const auto pairs = batch.Named("weight_E").sum().item<double>();
  return options_.kind == Kind::kKto ? 2 * pairs : pairs;
}

Tensor PreferenceObjective::Loss(const Batch& batch, const Activations& head,
                                 ObjectiveMetrics& metrics) const {
  const Tensor logprobs_B = SequenceLogprobs(head.logprobs_BT);
  const at::TensorOptions as = logprobs_B.options();
  const Tensor lengths_B =
      batch.targets_BT.ne(Batch::kIgnoreIndex).sum(1).clamp_min(1).to(as.dtype());
  const Tensor weight_P = batch.Named("weight_E").to(as.dtype());
  const Tensor ratio_B =
      needs_reference() ? logprobs_B - batch.Named(kReference).to(as.dtype()) : Tensor();
  Tensor loss_P, reward_B;
  switch (options_.kind) {
    case Kind::kDpo:
      reward_B = options_.beta * ratio_B;
      loss_P = DpoLoss(Chosen(ratio_B), Rejected(ratio_B),
                       {.beta = options_.beta, .label_smoothing = options_.label_smoothing});
      break;
    case Kind::kIpo: {
      reward_B = options_.beta * ratio_B;
      const Tensor mean_B = ratio_B / lengths_B;
      loss_P = IpoLoss(Chosen(mean_B), Rejected(mean_B), options_.beta);
      break;
    }
    case Kind::kKto: {
      reward_B = options_.beta * ratio_B;
      const Tensor desirable_B =
          at::arange(logprobs_B.size(0), as.dtype(at::kLong)).remainder(2).eq(0);
      const Tensor loss_B =
          KtoLoss(ratio_B, desirable_B, batch.Named(kReferencePoint).to(as.dtype()),
                  {.beta = options_.beta,
                   .desirable_weight = options_.desirable_weight,
                   .undesirable_weight = options_.undesirable_weight});
      loss_P = Chosen(loss_B) + Rejected(loss_B);
      break;
    }
    case Kind::kSimPo: {
      const Tensor mean_B = logprobs_B / lengths_B;
      reward_B = options_.beta * mean_B;
      loss_P = SimPoLoss(Chosen(mean_B), Rejected(mean_B),
                         {.beta = options_.beta, .gamma = options_.gamma});
      break;
    }
  }
  const Tensor loss = (loss_P * weight_P).sum();
  const at::NoGradGuard no_grad;
  const Tensor pairs = weight_P.sum();
  const auto add = [&](const char* name, const Tensor& x_P) {
    metrics.Add(name, (x_P * weight_P).sum(), pairs);
  };
  const Tensor margin_P = Chosen(reward_B) - Rejected(reward_B);
  add(kAccuracy, margin_P.gt(0).to(as.dtype()));
  add(kMargin, margin_P);
  add(kChosenReward, Chosen(reward_B));
  add(kRejectedReward, Rejected(reward_B));
  add(kChosenLogprob, Chosen(logprobs_B));
  add(kRejectedLogprob, Rejected(logprobs_B));
  return loss;
}

}  // namespace shoal
