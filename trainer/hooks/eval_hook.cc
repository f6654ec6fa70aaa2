#include "trainer/hooks/eval_hook.h"

#include "core/status.h"
#include "core/trace.h"

namespace shoal {

absl::Status EvalHook::Evaluate(int64_t step) {
  if (batches_.empty() || evaluated_step_ == step) return absl::OkStatus();
  const TraceSpan span(TraceKind::kOther, "evaluation");
  if (options_.averages) options_.averages->SwapEma();
  double loss = 0;
  double count = 0;
  ObjectiveMetrics metrics = runner_.MakeMetrics();
  for (const Batch& batch : batches_) {
    loss += runner_.Loss(batch, /*denominator=*/1.0, metrics);
    count += runner_.Count(batch);
  }
  if (options_.averages) options_.averages->SwapEma();
  loss = SumOverRanks(mesh_.control(), mesh_.reports_loss() ? loss : 0.0);
  loss_ = loss / SumOverRanks(mesh_.data_control(), count);
  evaluated_step_ = step;
  MetricsRow row;
  row.step = step;
  row.eval_loss = loss_;
  for (const auto& [name, mean] : metrics.Reduce(mesh_))
    row.extra.emplace_back("eval_" + name, mean);
  return log_.Write(row);
}

absl::Status EvalHook::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  if (options_.every_steps == 0 || metrics.step % options_.every_steps != 0)
    return absl::OkStatus();
  return Evaluate(metrics.step);
}

absl::Status EvalHook::AtEnd(const Trainer& trainer) { return Evaluate(trainer.progress().step); }

}  // namespace shoal
