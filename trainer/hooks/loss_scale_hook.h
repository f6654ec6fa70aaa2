// Says when the loss scale changes, and why.
#pragma once

#include "core/log.h"
#include "trainer/trainer.h"

namespace shoal {

class LossScaleHook final : public Hook {
 public:
  // `log` outlives the hook.
  explicit LossScaleHook(const Logger& log) : log_(log) {}

  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;

 private:
  const Logger& log_;
};

}  // namespace shoal
