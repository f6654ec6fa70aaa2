#include "optim/grad_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/optimizer_step.h"
#include "parallel/device_mesh.h"

namespace shoal {
namespace {

// Sum of squares of `count` elements of the slice, those that another rank counts left out.
double OwnedSquares(const OptimizerSlice& slice, int64_t first, int64_t count) {
  std::vector<Tensor> owned;
  bool all = true;
  const int64_t begin = slice.begin + first;
  for (const FlatLayout::Run& run : slice.layout->RunsOf(begin, begin + count)) {
    if (run.whole.owned)
      owned.push_back(slice.gradients.narrow(0, first + run.offset, run.whole.count));
    all &= run.whole.owned;
  }
  if (all) owned = {slice.gradients.narrow(0, first, count)};  // Padding is zero
  double total = 0;
  for (const Tensor& run : owned) total += SumOfSquares(run);
  return total;
}

// Sum of squares of the shard-th shard that the slices hold.
double ShardSquares(const std::vector<OptimizerSlice>& slices, int shard) {
  double total = 0;
  for (const OptimizerSlice& slice : slices)
    total += OwnedSquares(slice, shard * slice.shard_numel, slice.shard_numel);
  return total;
}

bool HoldsAll(const OptimizerSlice& slice) { return slice.gradients.numel() != slice.shard_numel; }

// Sum of squares of this rank's own shards.
double OwnShardSquares(const std::vector<OptimizerSlice>& slices) {
  double total = 0;
  for (const OptimizerSlice& slice : slices) {
    const int64_t first = HoldsAll(slice) ? slice.shard * slice.shard_numel : 0;
    total += OwnedSquares(slice, first, slice.shard_numel);
  }
  return total;
}

}  // namespace

double GlobalGradNorm(const std::vector<OptimizerSlice>& slices, Communicator& shard,
                      Communicator& model, bool shares_experts) {
  double total = 0;
  if (!slices.empty() && HoldsAll(slices[0]) && !shares_experts) {
    for (int i = 0; i < shard.size(); ++i) total += ShardSquares(slices, i);
  } else {
    total = SumOverRanks(shard, OwnShardSquares(slices));
  }
  return std::sqrt(SumOverRanks(model, total));
}

double ClipScale(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace shoal
