#include "trainer/federated/client_trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

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

Tensor ClientTrainer::NewVector() const {
  return at::zeros({vector_.size()}, parts_.parameters.options().master_dtype());
}

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

void ClientTrainer::ReadWeights(int copy, Tensor& weights) const {
  const at::NoGradGuard no_grad;
  vector_.Read(weights_, copy, weights);
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
  KeptStates kept{.vectors = {}, .updates = updates};
  for (const std::string& name : state_names()) {
    Tensor vector = NewVector();
    vector_.Read(parts_.optimizer.State(name), copy, vector);
    kept.vectors[name] = std::move(vector);
  }
  return kept;
}

}  // namespace shoal
