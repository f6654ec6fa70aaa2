#include "core/parameter.h"

#include <algorithm>

namespace shoal {

std::vector<ElementRun> RunsInWhole(const ParameterSpec& spec, int64_t first, int64_t count) {
  if (spec.cut.ranges.empty()) return {{first, count, spec.owned}};
  const int64_t rows = spec.shape[spec.cut.dim];
  const int64_t inner = rows == 0 ? 0 : spec.numel() / rows;
  std::vector<ElementRun> runs;
  int64_t local = 0;  // Of the first element of the range
  for (const TensorCut::Range& range : spec.cut.ranges) {
    const int64_t size = (range.end - range.begin) * inner;
    const int64_t from = std::max(first, local), to = std::min(first + count, local + size);
    if (from < to) {
      runs.push_back({range.begin * inner + from - local, to - from, spec.owned && range.owned});
    }
    local += size;
  }
  return runs;
}

}  // namespace shoal
