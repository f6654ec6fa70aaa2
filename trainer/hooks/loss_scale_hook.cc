#include "trainer/hooks/loss_scale_hook.h"

#include "absl/strings/str_format.h"

namespace shoal {

absl::Status LossScaleHook::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  const double next = trainer.progress().loss_scale->scale;
  if (next == metrics.loss_scale) return absl::OkStatus();
  log_.Info(absl::StrFormat(
      "loss scale %g -> %g %s", metrics.loss_scale, next,
      metrics.skipped ? absl::StrFormat("(step %d overflowed and is skipped)", metrics.step)
                      : absl::StrFormat("after step %d (%d finite ones)", metrics.step,
                                        trainer.options().loss_scaling->growth_interval)));
  return absl::OkStatus();
}

}  // namespace shoal
