// Rollouts as a source of batches: a step that needs a new rollout has it made.
#pragma once

#include <string>
#include <vector>

#include "trainer/batch_source.h"
#include "trainer/rlhf/policy_losses.h"
#include "trainer/rlhf/rollout_source.h"

namespace shoal {

// The rollout that policy and critic train on.
class RolloutStore {
 public:
  struct Options {
    int64_t epochs = 1;   // Passes over a rollout's answers
    int64_t answers = 0;  // Of a rollout
    LossAggregation aggregation = LossAggregation::kTokenMean;
    int64_t max_new_tokens = 0;  // Of LossAggregation::kMaximumLength
  };
  // `maker` outlives the store.
  RolloutStore(const Options& options, RolloutSource& maker) : options_(options), maker_(maker) {}

  int64_t steps_per_rollout() const {
    return options_.epochs * (options_.answers / maker_.layout().global());
  }
  // This rank's micro-batches of step `step`, carrying `names` and loss weights. The rollout of the
  // step is made if it is not here yet, which only its first step may ask for. Collective.
  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step,
                                                  const std::vector<std::string>& names);
  const Rollout& rollout() const { return rollout_; }

 private:
  void WeighStep(int64_t epoch, int64_t step);

  Options options_;
  RolloutSource& maker_;
  Rollout rollout_ = {.number = -1};
};

// The store's batches with what one objective needs of them.
class RolloutBatches final : public BatchSource {
 public:
  // Of `names`, those are carried that the rollout has.
  RolloutBatches(RolloutStore& store, std::vector<std::string> names)
      : store_(store), names_(std::move(names)) {}
  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    return store_.MicroBatches(step, names_);
  }

 private:
  RolloutStore& store_;
  std::vector<std::string> names_;
};

}  // namespace shoal
