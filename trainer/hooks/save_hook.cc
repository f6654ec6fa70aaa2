#include "trainer/hooks/save_hook.h"

#include "absl/time/clock.h"
#include "core/status.h"
#include "core/trace.h"
#include "trainer/state_pieces.h"

namespace shoal {

absl::Status SaveHook::Save(const TrainProgress& progress) {
  if (options_.saved_step == progress.step) return absl::OkStatus();
  const TraceSpan span(TraceKind::kOther, "checkpoint");
  TrainerState state = options_.constant_state;
  state.set_step(progress.step);
  state.set_tokens(progress.tokens);
  state.set_skipped_steps(progress.step - progress.updates);
  state.set_skipped_in_a_row(progress.skipped_in_a_row);
  if (progress.loss_scale) {
    state.set_loss_scale(progress.loss_scale->scale);
    state.set_finite_steps(progress.loss_scale->finite_steps);
  }
  state.mutable_data()->set_sequences(progress.step * options_.global_batch_size);
  state.set_trained_seconds(state.trained_seconds() + trained_seconds_);
  state.set_wall_time(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  if (eval_.loss()) state.set_eval_loss(*eval_.loss());
  SHOAL_RETURN_IF_ERROR(SaveCheckpoint(
      files_, mesh_.control(), options_.directory, state, ToStatePieces(optimizer_.PiecesToSave()),
      {.save_total_limit = options_.save_total_limit,
       .warn = [this](const std::string& text) { log_.Warning(text); }}));
  options_.saved_step = progress.step;
  return absl::OkStatus();
}

absl::Status SaveHook::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  trained_seconds_ += metrics.seconds;
  if (options_.every_steps == 0 || metrics.step % options_.every_steps != 0)
    return absl::OkStatus();
  return Save(trainer.progress());
}

absl::Status SaveHook::AtEnd(const Trainer& trainer) { return Save(trainer.progress()); }

}  // namespace shoal
