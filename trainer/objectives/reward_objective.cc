#include "trainer/objectives/reward_objective.h"

#include <ATen/ATen.h>

#include "trainer/rlhf/preference_losses.h"

namespace shoal {
namespace {

constexpr char kRewardAccuracy[] = "accuracy", kRewardMargin[] = "margin", kRewardScore[] = "score";

}  // namespace

std::vector<std::string> RewardObjective::metric_names() const {
  return {kRewardAccuracy, kRewardMargin, kRewardScore};
}

double RewardObjective::Count(const Batch& batch) const {
  return batch.Named("weight_E").sum().item<double>();
}

Tensor RewardObjective::Loss(const Batch& batch, const Activations& head,
                             ObjectiveMetrics& metrics) const {
  const Tensor scores_P2 =
      head.scores_BT.gather(1, batch.Named("last_B").unsqueeze(1)).view({-1, 2});
  const Tensor chosen_P = scores_P2.select(1, 0), rejected_P = scores_P2.select(1, 1);
  const Tensor weight_P = batch.Named("weight_E").to(scores_P2.scalar_type());
  const Tensor loss = (BradleyTerryLoss(chosen_P, rejected_P, {}, centering_) * weight_P).sum();
  const at::NoGradGuard no_grad;
  const Tensor pairs = weight_P.sum();
  const auto add = [&](const char* name, const Tensor& x_P) {
    metrics.Add(name, (x_P * weight_P).sum(), pairs);
  };
  add(kRewardAccuracy, chosen_P.gt(rejected_P).to(weight_P.scalar_type()));
  add(kRewardMargin, chosen_P - rejected_P);
  add(kRewardScore, (chosen_P + rejected_P) / 2);
  return loss;
}

}  // namespace shoal
