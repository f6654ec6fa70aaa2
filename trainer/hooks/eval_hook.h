// Held-out loss every few steps and at the end.
#pragma once

#include <optional>
#include <vector>

#include "trainer/hooks/log_hook.h"
#include "trainer/trainer.h"

namespace shoal {

class EvalHook final : public Hook {
 public:
  struct Options {
    int64_t every_steps = 0;               // 0: at the end only
    ShardedOptimizer* averages = nullptr;  // Borrowed. Set: its running mean is evaluated
  };

  // `batches`: this rank's held-out batches, as many on every rank. All borrowed outlive the hook.
  EvalHook(const Options& options, std::vector<Batch> batches, DeviceMesh& mesh,
           BlockRunner& runner, LogHook& log)
      : options_(options), batches_(std::move(batches)), mesh_(mesh), runner_(runner), log_(log) {}

  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;
  absl::Status AtEnd(const Trainer& trainer) override;

  // Of the newest evaluation, or what a resumed checkpoint says.
  const std::optional<double>& loss() const { return loss_; }
  void set_loss(double loss) { loss_ = loss; }

 private:
  absl::Status Evaluate(int64_t step);

  Options options_;
  std::vector<Batch> batches_;
  DeviceMesh& mesh_;
  BlockRunner& runner_;
  LogHook& log_;
  std::optional<double> loss_;
  int64_t evaluated_step_ = -1;
};

}  // namespace shoal
