#include "trainer/trainer.h"

#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "core/tensor_memory.h"
#include "core/trace.h"
#include "optim/grad_norm.h"

namespace shoal {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::optional<StepMetrics::OffloadBytes> Since(
    const std::optional<StepMetrics::OffloadBytes>& before,
    const std::optional<StepMetrics::OffloadBytes>& now) {
  if (!now) return std::nullopt;
  return StepMetrics::OffloadBytes{.read = now->read - before->read,
                                   .written = now->written - before->written};
}

}  // namespace

void Trainer::Resume(const TrainProgress& progress) {
  progress_ = progress;
  if (!options_.loss_scaling)
    progress_.loss_scale.reset();
  else if (!progress_.loss_scale)
    progress_.loss_scale = LossScale{.scale = options_.loss_scaling->initial_scale};
}

Trainer::Offloaded Trainer::OffloadedSoFar() const {
  Offloaded so_far;
  if (const OffloadSpace* disk = parts_.offload)
    so_far.disk = {.read = disk->bytes_read(), .written = disk->bytes_written()};
  const ActivationStore* activations = parts_.runner.offload();
  if (activations != nullptr && !parts_.parameters.device().is_cpu())
    so_far.host = {.read = activations->bytes_to_device(), .written = activations->bytes_to_host()};
  return so_far;
}

absl::StatusOr<StepMetrics> Trainer::TrainStep() {
  const auto start = std::chrono::steady_clock::now();
  TraceSpan span(TraceKind::kOther, "step");
  span.Label([&] { return absl::StrCat(progress_.step + 1); });
  DeviceMesh& mesh = parts_.mesh;
  const int64_t bytes_before = mesh.bytes_sent();
  ResetPeakTensorBytes(parts_.parameters.device());
  const Offloaded offloaded_before = OffloadedSoFar();

  SHOAL_ASSIGN_OR_RETURN(std::vector<Batch> micro_batches, [&] {
    const TraceSpan data(TraceKind::kOther, "data");
    return parts_.batches.MicroBatches(progress_.step);
  }());
  StepMetrics metrics{.step = progress_.step + 1,
                      .learning_rate = options_.learning_rate.At(progress_.step),
                      .loss_scale = progress_.loss_scale ? progress_.loss_scale->scale : 1.0};
  double count = 0;
  for (const Batch& batch : micro_batches) {
    count += parts_.runner.Count(batch);
    metrics.tokens += batch.tokens_BT.numel();
  }
  count = SumOverRanks(mesh.data_control(), count);
  metrics.tokens = SumOverRanks(mesh.data_control(), metrics.tokens);

  ObjectiveMetrics objective = parts_.runner.MakeMetrics();
  RoutingTotals routing = parts_.runner.MakeRoutingTotals();
  const double local_loss =
      parts_.runner.ForwardBackward(micro_batches,
                                    {.denominator = count > 0 ? count : 1.0,
                                     .tokens = static_cast<double>(metrics.tokens),
                                     .loss_scale = metrics.loss_scale},
                                    objective, routing);
  metrics.loss = SumOverRanks(mesh.control(), mesh.reports_loss() ? local_loss : 0.0);
  {
    const TraceSpan norm(TraceKind::kOther, "gradient norm");
    metrics.grad_norm = GlobalGradNorm(parts_.parameters.optimizer_slices(), mesh.shard_control(),
                                       mesh.model_control(), mesh.expert() != nullptr) /
                        metrics.loss_scale;
  }
  metrics.objective = objective.Reduce(mesh);
  routing.Reduce(mesh);
  for (auto& figure : routing.Figures()) metrics.objective.push_back(std::move(figure));
  metrics.skipped = !std::isfinite(metrics.loss) || !std::isfinite(metrics.grad_norm);
  if (!metrics.skipped) {
    const TraceSpan update(TraceKind::kOptimizer, "optimizer");
    parts_.optimizer.Step(
        {.learning_rate = metrics.learning_rate,
         .grad_scale = ClipScale(metrics.grad_norm, options_.max_grad_norm) / metrics.loss_scale,
         .step = ++progress_.updates});
    parts_.runner.MoveRouterBiases(routing, options_.router_bias_rate);
  }
  if (options_.loss_scaling) {
    progress_.loss_scale =
        NextLossScale(*options_.loss_scaling, *progress_.loss_scale, metrics.skipped);
  }
  ++progress_.step;
  progress_.tokens += metrics.tokens;
  metrics.bytes_sent = mesh.bytes_sent() - bytes_before;
  metrics.peak_tensor_bytes = PeakTensorBytes(parts_.parameters.device());
  const Offloaded offloaded = OffloadedSoFar();
  metrics.offload = Since(offloaded_before.disk, offloaded.disk);
  metrics.offload_host = Since(offloaded_before.host, offloaded.host);
  metrics.seconds = SecondsSince(start);
  return metrics;
}

absl::Status Trainer::CountSkipped(const StepMetrics& metrics) {
  if (options_.loss_scaling) {
    if (progress_.loss_scale->scale >= options_.loss_scaling->min_scale) return absl::OkStatus();
    return absl::AbortedError(absl::StrCat(
        "step ", metrics.step, ": loss ", metrics.loss, ", gradient norm ", metrics.grad_norm,
        " at loss scale ", metrics.loss_scale,
        ", half of which is below "
        "training.loss_scaling.min_scale ",
        options_.loss_scaling->min_scale,
        ". Weights are as they were before. Lower optimizer.learning_rate, or train in bfloat16."));
  }
  progress_.skipped_in_a_row = metrics.skipped ? progress_.skipped_in_a_row + 1 : 0;
  const int64_t limit = options_.stop_on_non_finite ? 1 : options_.max_skipped_steps;
  if (progress_.skipped_in_a_row < limit) return absl::OkStatus();
  return absl::AbortedError(
      absl::StrCat("step ", metrics.step, ": loss ", metrics.loss, ", gradient norm ",
                   metrics.grad_norm, " (", progress_.skipped_in_a_row,
                   " non-finite in a row). Weights are as they were before. Lower "
                   "optimizer.learning_rate, or raise training.max_skipped_steps."));
}

absl::StatusOr<StepMetrics> Trainer::Step() {
  SHOAL_ASSIGN_OR_RETURN(const StepMetrics metrics, TrainStep());
  SHOAL_RETURN_IF_ERROR(CountSkipped(metrics));
  for (auto& hook : hooks_) SHOAL_RETURN_IF_ERROR(hook->AfterStep(*this, metrics));
  return metrics;
}

absl::Status Trainer::End() {
  for (auto& hook : hooks_) SHOAL_RETURN_IF_ERROR(hook->AtEnd(*this));
  return absl::OkStatus();
}

absl::Status Trainer::Run() {
  while (progress_.step < options_.num_steps) SHOAL_RETURN_IF_ERROR(Step().status());
  return End();
}

}  // namespace shoal
