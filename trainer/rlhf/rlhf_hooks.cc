#include "trainer/rlhf/rlhf_hooks.h"

namespace shoal {

absl::Status CriticHook::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  if (!critic_) return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(const StepMetrics step, critic_->Step());
  figures_ = {{"value_loss", step.loss}, {"value_grad_norm", step.grad_norm}};
  figures_.insert(figures_.end(), step.objective.begin(), step.objective.end());
  return absl::OkStatus();
}

absl::Status CriticHook::AtEnd(const Trainer& trainer) {
  return critic_ ? critic_->End() : absl::OkStatus();
}

absl::Status LogprobAlarm::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  const auto check = [&](const LogHook::Figures& figures) {
    for (const auto& [name, value] : figures) {
      if (name != "logprob_error" || value <= tolerance_) continue;
      log_.Warning(absl::StrCat(
          "step ", metrics.step,
          ": log-probabilities of rollout and training differ by a factor of ", 1 + value,
          " a token, more than 1 + ", tolerance_,
          " (rlhf.rollout.logprob_tolerance): the policy learns from another's answers"));
    }
  };
  check(metrics.objective);
  check(maker_.figures());
  return absl::OkStatus();
}

absl::Status RewardEvalHook::Evaluate(int64_t step) {
  if (evaluated_step_ == step) return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(const RolloutSource::Figures figures, maker_.Evaluate());
  evaluated_step_ = step;
  MetricsRow row;
  row.step = step;
  row.extra = figures;
  return log_.Write(row);
}

absl::Status RewardEvalHook::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  if (every_steps_ == 0 || metrics.step % every_steps_ != 0) return absl::OkStatus();
  return Evaluate(metrics.step);
}

absl::Status RewardEvalHook::AtEnd(const Trainer& trainer) {
  return Evaluate(trainer.progress().step);
}

}  // namespace shoal
