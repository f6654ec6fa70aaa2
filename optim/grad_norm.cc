#include "optim/grad_norm.h"

#include <algorithm>
#include <cmath>

#include "core/scalar_sum.h"
#include "kernels/optimizer_step.h"
#include "parallel/device_mesh.h"

namespace shoal {
namespace {

// Runs of one slice, in the order in which their squares are added.
using Runs = std::vector<Tensor>;

// The runs of `count` elements of the slice, those that another rank counts left out.
Runs OwnedRuns(const OptimizerSlice& slice, int64_t first, int64_t count) {
  Runs owned;
  bool all = true;
  const int64_t begin = slice.begin + first;
  for (const FlatLayout::Run& run : slice.layout->RunsOf(begin, begin + count)) {
    if (run.whole.owned)
      owned.push_back(slice.gradients.narrow(0, first + run.offset, run.whole.count));
    all &= run.whole.owned;
  }
  if (all) owned = {slice.gradients.narrow(0, first, count)};  // Padding is zero
  return owned;
}

bool HoldsAll(const OptimizerSlice& slice) { return slice.gradients.numel() != slice.shard_numel; }

// The slices' runs of one shard: of all that they hold the shard-th, or this rank's own (-1).
std::vector<Runs> ShardRuns(const std::vector<OptimizerSlice>& slices, int shard) {
  std::vector<Runs> runs;
  for (const OptimizerSlice& slice : slices) {
    const int place = shard >= 0 ? shard : HoldsAll(slice) ? slice.shard : 0;
    runs.push_back(OwnedRuns(slice, place * slice.shard_numel, slice.shard_numel));
  }
  return runs;
}

// Sums of squares of shards: run by run, slice by slice. All are read at once.
std::vector<double> ShardSquares(const std::vector<std::vector<Runs>>& shards) {
  std::vector<Tensor> squares_of_runs;
  for (const auto& shard : shards) {
    for (const Runs& slice : shard) {
      for (const Tensor& run : slice) squares_of_runs.push_back(SumOfSquaresOf(run));
    }
  }
  const std::vector<double> read = ReadNumbers(squares_of_runs);
  std::vector<double> sums;
  size_t next = 0;
  for (const auto& shard : shards) {
    double total = 0;
    for (const Runs& slice : shard) {
      double squares = 0;
      for (size_t run = 0; run < slice.size(); ++run) squares += read[next++];
      total += squares;
    }
    sums.push_back(total);
  }
  return sums;
}

}  // namespace

double GlobalGradNorm(const std::vector<OptimizerSlice>& slices, Communicator& shard,
                      Communicator& model, bool shares_experts) {
  double total = 0;
  if (!slices.empty() && HoldsAll(slices[0]) && !shares_experts) {
    std::vector<std::vector<Runs>> shards;
    for (int i = 0; i < shard.size(); ++i) shards.push_back(ShardRuns(slices, i));
    for (const double squares : ShardSquares(shards)) total += squares;
  } else {
    total = SumOverRanks(shard, ShardSquares({ShardRuns(slices, -1)})[0]);
  }
  return std::sqrt(SumOverRanks(model, total));
}

double ClipScale(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace shoal
