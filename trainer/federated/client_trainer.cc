#include "trainer/federated/client_trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

namespace shoal {
namespace {

class LossSum final : public Hook {
 public:
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override {
    if (!metrics.skipped) sum += metrics.loss;
    counted += !metrics.skipped;
    return absl::OkStatus();
  }

  double sum = 0;
  int64_t counted = 0;
};

}  // namespace

ClientTrainer::ClientTrainer(const Options& options, const Parts& parts)
    : options_(options),
      parts_(parts),
      slices_(parts.parameters.optimizer_slices()),
      vector_(slices_, parts.copies),
      weights_(WeightsOf(slices_)),
      runner_(parts.model, parts.parameters, parts.runner_options) {}

void ClientTrainer::Begin(const std::vector<Start>& starts) {
  const at::NoGradGuard no_grad;
  parts_.optimizer.ResetStates();
  for (int copy = 0; copy < parts_.copies; ++copy) {
    const Start& start = starts[copy];
    vector_.Write(start.weights, copy, weights_);
    if (options_.pulled_to_start)
      vector_.Write(start.weights, copy, parts_.optimizer.State(CorrectedRule::kStart));
    if (options_.corrected && start.correction.defined())
      vector_.Write(start.correction, copy, parts_.optimizer.State(CorrectedRule::kCorrection));
    if (start.states == nullptr) continue;
    for (const auto& [name, vector] : start.states->vectors)
      vector_.Write(vector, copy, parts_.optimizer.State(name));
  }
  parts_.parameters.SyncFromMaster();
}

absl::StatusOr<ClientTrainer::Outcome> ClientTrainer::Train(const Work& work) {
  Begin(work.starts);
  const KeptStates* states = work.starts[0].states;
  Trainer::Options options = options_.trainer;
  options.num_steps = work.steps;
  // A skipped step would skip for all copies.
  if (parts_.copies > 1) options.stop_on_non_finite = true;
  options.learning_rate = {
      .type = LrSchedule::Type::kConstant, .peak = work.learning_rate, .total_steps = work.steps};
  std::optional<BlockRunner> dropping;
  if (parts_.runner_options.dropout_seed) {
    RunnerOptions seeded = parts_.runner_options;
    seeded.dropout_seed = work.seed;
    dropping.emplace(parts_.model, parts_.parameters, std::move(seeded));
  }
  Trainer trainer(options, {.mesh = parts_.mesh,
                            .runner = dropping ? *dropping : runner_,
                            .parameters = parts_.parameters,
                            .optimizer = parts_.optimizer,
                            .batches = work.batches});
  trainer.Resume({.step = 0, .updates = states ? states->updates : 0});
  auto hook = std::make_unique<LossSum>();
  const LossSum& losses = *hook;
  trainer.AddHook(std::move(hook));
  const absl::Status trained = trainer.Run();
  if (!trained.ok() && !absl::IsAborted(trained)) return trained;
  return Outcome{.loss = losses.sum /
                         static_cast<double>(parts_.copies * std::max<int64_t>(1, losses.counted)),
                 .tokens = trainer.progress().tokens,
                 .updates = trainer.progress().updates,
                 .diverged = !trained.ok()};
}

void ClientTrainer::ReadUpdate(int copy, const Tensor& start, Tensor& update) const {
  const at::NoGradGuard no_grad;
  const bool apart = start.device() != update.device();
  Tensor near = apart ? at::empty_like(start) : update;
  vector_.Read(weights_, copy, near);
  near.neg_().add_(start);
  if (apart) update.copy_(near);
}

std::vector<std::string> ClientTrainer::state_names() const {
  std::vector<std::string> names;
  for (const std::string& name : parts_.optimizer.rule().state_names()) {
    if (name != CorrectedRule::kStart && name != CorrectedRule::kCorrection) names.push_back(name);
  }
  return names;
}

KeptStates ClientTrainer::ReadStates(int copy, int64_t updates) const {
  const at::NoGradGuard no_grad;
  const std::vector<std::string> names = state_names();
  const auto count = static_cast<int64_t>(names.size());
  const Tensor near = at::empty({count, vector_.size()},
                                at::TensorOptions(parts_.parameters.options().master_dtype())
                                    .device(parts_.parameters.device()));
  for (int64_t i = 0; i < count; ++i) {
    Tensor vector = near[i];
    vector_.Read(parts_.optimizer.State(names[i]), copy, vector);
  }
  const Tensor in_host_memory = near.cpu();
  KeptStates kept{.vectors = {}, .updates = updates};
  for (int64_t i = 0; i < count; ++i) kept.vectors[names[i]] = in_host_memory[i];
  return kept;
}

}  // namespace shoal
