#include "trainer/hooks/log_hook.h"

#include "core/process_memory.h"
#include "core/status.h"
#include "kernels/matmul.h"

namespace shoal {

absl::Status LogHook::Write(const MetricsRow& row) {
  for (auto& sink : sinks_) SHOAL_RETURN_IF_ERROR(sink->Write(row));
  return absl::OkStatus();
}

double LogHook::MatrixPeak() {
  if (matrix_peak_flops_ == 0) {
    matrix_peak_flops_ = options_.device.is_cpu()
                             ? MeasureMatMulPeak(options_.compute_dtype, options_.threads_per_rank)
                             : MeasureMatMulPeak(options_.compute_dtype, options_.device);
  }
  return matrix_peak_flops_;
}

double LogHook::ModelFlopsUtilization(double tokens_per_second) {
  return options_.train_flops_per_token * tokens_per_second /
         (mesh_.control().size() * MatrixPeak());
}

absl::Status LogHook::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  ++steps_;
  tokens_ += metrics.tokens;
  seconds_ += metrics.seconds;
  peak_tensor_bytes_ = std::max(peak_tensor_bytes_, metrics.peak_tensor_bytes);
  const bool last = metrics.step == trainer.options().num_steps;
  if (metrics.step % options_.every_steps != 0 && !last) return absl::OkStatus();

  MetricsRow row{.step = metrics.step,
                 .loss = metrics.loss,
                 .grad_norm = metrics.grad_norm,
                 .learning_rate = metrics.learning_rate,
                 .tokens = trainer.progress().tokens,
                 .tokens_per_second = tokens_ / seconds_,
                 .step_seconds = seconds_ / steps_,
                 .peak_rss_bytes = MaxOverRanks(mesh_.control(), PeakRssBytes()),
                 .peak_tensor_bytes = MaxOverRanks(mesh_.control(), peak_tensor_bytes_),
                 .bytes_sent = metrics.bytes_sent,
                 .eval_loss = {},
                 .extra = {}};
  // The first step warms caches up; what it says of speed is not worth a measurement of the peak.
  if (metrics.step > 1)
    row.extra.emplace_back("mfu", ModelFlopsUtilization(*row.tokens_per_second));
  row.extra.insert(row.extra.end(), metrics.objective.begin(), metrics.objective.end());
  if (more_) {
    const Figures figures = more_();
    row.extra.insert(row.extra.end(), figures.begin(), figures.end());
  }
  if (trainer.options().loss_scaling) row.extra.emplace_back("loss_scale", metrics.loss_scale);
  const auto offloaded = [&](const std::string& name,
                             const std::optional<StepMetrics::OffloadBytes>& bytes) {
    if (!bytes) return;
    const auto most = [&](int64_t of_rank) {
      return static_cast<double>(MaxOverRanks(mesh_.control(), of_rank));
    };
    row.extra.emplace_back(name + "_bytes_read", most(bytes->read));
    row.extra.emplace_back(name + "_bytes_written", most(bytes->written));
  };
  offloaded("offload", metrics.offload);
  offloaded("offload_host", metrics.offload_host);
  if (metrics.skipped) row.extra.emplace_back("skipped", 1.0);
  steps_ = tokens_ = peak_tensor_bytes_ = 0;
  seconds_ = 0;
  return Write(row);
}

absl::Status LogHook::Close() {
  for (auto& sink : sinks_) SHOAL_RETURN_IF_ERROR(sink->Close());
  return absl::OkStatus();
}

}  // namespace shoal
