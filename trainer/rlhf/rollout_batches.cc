#include "trainer/rlhf/rollout_batches.h"

#include <ATen/ATen.h>

#include "core/trace.h"

namespace shoal {

// How much each token of the step's answers, of all ranks, counts.
void RolloutStore::WeighStep(int64_t epoch, int64_t step) {
  RolloutLayout whole = maker_.layout();
  whole.rows = whole.global();
  whole.micro_batches = whole.num_ranks = 1;
  whole.rank = 0;
  const at::Tensor rows =
      at::tensor(MicroBatchRows(rollout_, whole, epoch, step, /*micro_batch=*/0));
  at::Tensor weights_NA = at::zeros(rollout_.mask_NA.sizes(), at::kDouble);
  weights_NA.index_copy_(0, rows,
                         LossWeights(rollout_.mask_NA.index_select(0, rows), options_.aggregation,
                                     options_.max_new_tokens));
  rollout_.of_tokens[kLossWeights] = weights_NA;
}

absl::StatusOr<std::vector<Batch>> RolloutStore::MicroBatches(
    int64_t step, const std::vector<std::string>& names) {
  const int64_t number = step / steps_per_rollout(), place = step % steps_per_rollout();
  if (rollout_.number != number) {
    SHOAL_CHECK(place == 0) << "step " << step << " has no rollout";
    const TraceSpan span(TraceKind::kOther, "rollout");
    SHOAL_ASSIGN_OR_RETURN(rollout_, maker_.Make(number));
  }
  const RolloutLayout& layout = maker_.layout();
  const int64_t steps_an_epoch = steps_per_rollout() / options_.epochs;
  const int64_t epoch = place / steps_an_epoch, step_of_epoch = place % steps_an_epoch;
  WeighStep(epoch, step_of_epoch);
  std::vector<std::string> carried = {kLossWeights};
  for (const std::string& name : names) {
    if (rollout_.of_tokens.count(name)) carried.push_back(name);
  }
  std::vector<Batch> batches;
  for (int64_t m = 0; m < layout.micro_batches; ++m) {
    batches.push_back(MakeRolloutBatch(rollout_,
                                       MicroBatchRows(rollout_, layout, epoch, step_of_epoch, m),
                                       layout.multiple, carried));
  }
  return batches;
}

}  // namespace shoal
