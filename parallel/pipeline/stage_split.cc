#include "parallel/pipeline/stage_split.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace shoal {

absl::StatusOr<std::vector<BlockRange>> SplitByCost(std::span<const double> costs, int stages) {
  const int blocks = static_cast<int>(costs.size());
  if (stages < 1 || blocks < stages) {
    return absl::InvalidArgumentError(
        absl::StrCat(blocks, " blocks (embedding, layers, head) cannot fill ", stages,
                     " pipeline stages, expected at most ", blocks));
  }
  std::vector<double> prefix = {0};
  for (double cost : costs) prefix.push_back(prefix.back() + cost);
  // worst[s][b]: the costliest of s runs over the first b blocks; from[s][b]: where the last
  // begins.
  const double infinity = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> worst(stages + 1, std::vector<double>(blocks + 1, infinity));
  std::vector<std::vector<int>> from(stages + 1, std::vector<int>(blocks + 1, 0));
  worst[0][0] = 0;
  for (int s = 1; s <= stages; ++s) {
    for (int b = s; b <= blocks; ++b) {
      for (int begin = s - 1; begin < b; ++begin) {
        const double candidate = std::max(worst[s - 1][begin], prefix[b] - prefix[begin]);
        if (candidate >= worst[s][b]) continue;
        worst[s][b] = candidate;
        from[s][b] = begin;
      }
    }
  }
  std::vector<BlockRange> ranges(stages);
  for (int s = stages, end = blocks; s > 0; --s) {
    ranges[s - 1] = {from[s][end], end};
    end = from[s][end];
  }
  return ranges;
}

}  // namespace shoal
