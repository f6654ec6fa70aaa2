// What happens after a policy's step: the critic's, a look at the log-probabilities, an evaluation.
#pragma once

#include <string>

#include "core/log.h"
#include "trainer/hooks/log_hook.h"
#include "trainer/rlhf/rollout_source.h"
#include "trainer/trainer.h"

namespace shoal {

// The critic takes its step on the same answers.
class CriticHook final : public Hook {
 public:
  // `critic` outlives the hook; null: there is none.
  explicit CriticHook(Trainer* critic) : critic_(critic) {}
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;
  absl::Status AtEnd(const Trainer& trainer) override;

  const LogHook::Figures& figures() const { return figures_; }

 private:
  Trainer* critic_;
  LogHook::Figures figures_;
};

// Warns where log-probabilities of rollout and training differ by more than the tolerance: then
// what is generated with and what is trained are not one model.
class LogprobAlarm final : public Hook {
 public:
  LogprobAlarm(double tolerance, const RolloutSource& maker, const Logger& log)
      : tolerance_(tolerance), maker_(maker), log_(log) {}
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;

 private:
  double tolerance_;
  const RolloutSource& maker_;
  const Logger& log_;
};

// What the likeliest answers are worth, every few steps (0: never between), at the end and, by
// Evaluate, before the first step.
class RewardEvalHook final : public Hook {
 public:
  RewardEvalHook(int64_t every_steps, RolloutSource& maker, LogHook& log)
      : every_steps_(every_steps), maker_(maker), log_(log) {}
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;
  absl::Status AtEnd(const Trainer& trainer) override;
  absl::Status Evaluate(int64_t step);

 private:
  int64_t every_steps_;
  RolloutSource& maker_;
  LogHook& log_;
  int64_t evaluated_step_ = -1;
};

}  // namespace shoal
