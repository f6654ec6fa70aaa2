// What a policy and its critic minimise on a rollout's micro-batches.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/objective.h"
#include "trainer/rlhf/kl_estimators.h"
#include "trainer/rlhf/policy_losses.h"

namespace shoal {

// Sum over tokens of loss_weights (policy loss + kl_coef KL penalty), divided by the global number
// of answers. The batch carries (see rollout.h) advantages and loss_weights; old_logprobs, else the
// policy is taken to be the one that answered and the ratio is 1; reference_logprobs under kl_coef;
// rollout_logprobs if they are to be compared.
//
// Metrics, means over tokens: ratio, clip_fraction; approx_kl, k3 of old against pi; kl, k3 of the
// reference against pi; logprob_error, exp|log pi - rollout_logprobs| - 1.
class PolicyObjective final : public Objective {
 public:
  struct Options {
    bool gspo = false;  // A ratio an answer
    ClipOptions clip;
    double kl_coef = 0;  // Of the penalty in the loss
    KlPenaltyOptions kl;
    double temperature = 1.0;
  };
  explicit PolicyObjective(const Options& options) : options_(options) {}

  HeadMode head_mode() const override { return HeadMode::kLogprobs; }
  double temperature() const override { return options_.temperature; }
  std::vector<std::string> metric_names() const override;
  double Count(const Batch& batch) const override {
    return static_cast<double>(batch.tokens_BT.size(0));
  }
  Tensor Loss(const Batch& batch, const Activations& head,
              ObjectiveMetrics& metrics) const override;

 private:
  Options options_;
};

// Sum over tokens of loss_weights ValueLoss, divided by the global number of answers. The batch
// carries returns, old_values and loss_weights. Metrics: value, value_error (squared).
class ValueObjective final : public Objective {
 public:
  explicit ValueObjective(double clip) : clip_(clip) {}

  HeadMode head_mode() const override { return HeadMode::kScores; }
  std::vector<std::string> metric_names() const override { return {"value", "value_error"}; }
  double Count(const Batch& batch) const override {
    return static_cast<double>(batch.tokens_BT.size(0));
  }
  Tensor Loss(const Batch& batch, const Activations& head,
              ObjectiveMetrics& metrics) const override;

 private:
  double clip_;
};

}  // namespace shoal
