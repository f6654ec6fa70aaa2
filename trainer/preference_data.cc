#include "trainer/preference_data.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/status.h"
#include "trainer/objectives/preference_objective.h"
#include "trainer/rlhf/preference_losses.h"

namespace shoal {
namespace {

PreferenceObjective::Options ObjectiveOptions(const PreferenceSection& section) {
  static constexpr PreferenceObjective::Kind kKinds[] = {
      PreferenceObjective::Kind::kDpo, PreferenceObjective::Kind::kIpo,
      PreferenceObjective::Kind::kKto, PreferenceObjective::Kind::kSimPo};
  return {.kind = kKinds[section.loss()],
          .beta = section.beta(),
          .gamma = section.gamma(),
          .label_smoothing = section.label_smoothing(),
          .desirable_weight = section.desirable_weight(),
          .undesirable_weight = section.undesirable_weight()};
}

class PreferenceData final : public TaskData {
 public:
  PreferenceData(const Recipe& recipe, ExampleLoader loader, Engine& engine)
      : objective_(ObjectiveOptions(recipe.preference())),
        loader_(std::move(loader)),
        mesh_(engine.mesh()),
        runner_(engine.MakeRunner(&objective_)),
        adapters_off_(recipe.model().has_lora() &&
                      recipe.preference().reference() != PreferenceSection::precomputed) {}

  const Objective* objective() const override { return &objective_; }
  int64_t num_sequences() const override { return loader_.num_examples(); }
  bool reads_initial_weights() const override { return objective_.needs_reference(); }

  absl::Status Begin(Engine& engine) override {
    if (!objective_.needs_reference() || adapters_off_) return absl::OkStatus();
    const int64_t pairs = loader_.num_examples(), rows = engine.batch().per_device;
    reference_ = at::zeros({pairs, 2}, at::kDouble);
    // Once round, in the order of the first epoch's steps: the batches that training will see.
    for (int64_t step = 0; step * engine.batch().global < pairs; ++step) {
      SHOAL_ASSIGN_OR_RETURN(const std::vector<Batch> batches, loader_.MicroBatches(step));
      for (size_t m = 0; m < batches.size(); ++m) {
        const Tensor logprobs_B = Ask(batches[m]);
        if (!logprobs_B.defined()) continue;
        // The last step goes on into the second round.
        const int64_t first = loader_.Position(step, static_cast<int64_t>(m));
        const int64_t known = std::clamp<int64_t>(pairs - first, 0, rows);
        reference_.index_put_({batches[m].Named("example_E").narrow(0, 0, known)},
                              logprobs_B.view({-1, 2}).narrow(0, 0, known));
      }
    }
    mesh_.data_control().AllReduce(reference_);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    SHOAL_ASSIGN_OR_RETURN(std::vector<Batch> batches, loader_.MicroBatches(step));
    for (Batch& batch : batches) {
      if (!objective_.needs_reference()) continue;
      batch.named[PreferenceObjective::kReference] =
          adapters_off_ ? Ask(batch)
                        : reference_.index_select(0, batch.Named("example_E")).view({-1});
    }
    if (objective_.needs_reference_point()) {
      SHOAL_ASSIGN_OR_RETURN(const std::vector<Batch> mismatched, loader_.MismatchedBatches(step));
      const Tensor point = ReferencePoint(mismatched);
      for (Batch& batch : batches) batch.named[PreferenceObjective::kReferencePoint] = point;
    }
    return batches;
  }

  absl::StatusOr<std::vector<Batch>> EvalBatches(int64_t max_batches) override {
    SHOAL_ASSIGN_OR_RETURN(std::vector<Batch> batches, loader_.EvalBatches(max_batches));
    for (Batch& batch : batches) {
      if (objective_.needs_reference()) batch.named[PreferenceObjective::kReference] = Ask(batch);
      // Of a policy that is its reference.
      if (objective_.needs_reference_point())
        batch.named[PreferenceObjective::kReferencePoint] = at::zeros({}, at::kDouble);
    }
    return batches;
  }

 private:
  // (B) log-probabilities of the answers under the reference, in host memory; undefined where this
  // rank has no head.
  Tensor Ask(const Batch& batch) {
    const Activations head = runner_.Head(batch, {.adapters = !adapters_off_});
    return head.logprobs_BT.defined() ? SequenceLogprobs(head.logprobs_BT).to(at::kCPU, at::kDouble)
                                      : Tensor();
  }

  // Of KTO: over the global batch, under the weights of the moment.
  Tensor ReferencePoint(const std::vector<Batch>& mismatched) {
    double sum = 0, count = 0;
    for (const Batch& batch : mismatched) {
      const Activations policy = runner_.Head(batch, {});
      const Tensor reference_B = Ask(batch);
      count += static_cast<double>(batch.tokens_BT.size(0));
      if (!reference_B.defined()) continue;
      sum += (SequenceLogprobs(policy.logprobs_BT).to(at::kCPU) - reference_B).sum().item<double>();
    }
    Communicator& ranks = mesh_.data_control();
    return KtoReferencePoint(at::scalar_tensor(SumOverRanks(ranks, sum), at::kDouble),
                             SumOverRanks(ranks, count));
  }

  PreferenceObjective objective_;
  ExampleLoader loader_;
  DeviceMesh& mesh_;
  BlockRunner runner_;
  const bool adapters_off_;
  Tensor reference_;  // (pairs, 2) float64, of the training pairs
};

}  // namespace

std::unique_ptr<TaskData> MakePreferenceData(const Recipe& recipe, ExampleLoader loader,
                                             Engine& engine) {
  return std::make_unique<PreferenceData>(recipe, std::move(loader), engine);
}

}  // namespace shoal
