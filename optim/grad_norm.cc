#include "optim/grad_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/optimizer_step.h"
#include "parallel/device_mesh.h"

namespace shoal {
namespace {

// Sum of squares of the shard-th shard that the slices hold.
double ShardSquares(const std::vector<OptimizerSlice>& slices, int shard) {
  double total = 0;
  for (const OptimizerSlice& slice : slices) {
    total += SumOfSquares(slice.gradients.narrow(0, shard * slice.shard_numel, slice.shard_numel));
  }
  return total;
}

}  // namespace

double GlobalGradNorm(const std::vector<OptimizerSlice>& slices, Communicator& comm) {
  if (slices.empty()) return 0;
  const bool holds_all = slices[0].gradients.numel() != slices[0].shard_numel;
  double total = ShardSquares(slices, 0);
  if (holds_all) {
    for (int shard = 1; shard < comm.size(); ++shard) total += ShardSquares(slices, shard);
  } else {
    total = SumOverRanks(comm, total);
  }
  return std::sqrt(total);
}

double ClipScale(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace shoal
