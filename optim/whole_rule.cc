#include "optim/whole_rule.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace shoal {

std::vector<WholePart::Run> CountedRuns(const ParameterSpec& spec, int64_t first, int64_t count,
                                        int tensor_rank) {
  // `owned` is also false of a tied weight's copy on another stage, which has the same sums to do.
  ParameterSpec alone = spec;
  alone.owned = spec.cut.ranges.empty() ? tensor_rank == 0 : true;
  const std::vector<ElementRun> counted = RunsInWhole(alone, first, count);
  const std::vector<ElementRun> owned = RunsInWhole(spec, first, count);
  std::vector<WholePart::Run> runs;
  int64_t offset = 0;
  for (size_t i = 0; i < counted.size(); ++i) {
    runs.push_back({.first = counted[i].first,
                    .count = counted[i].count,
                    .offset = offset,
                    .counted = counted[i].owned,
                    .owned = owned[i].owned});
    offset += counted[i].count;
  }
  return runs;
}

void ForRectangles(const Tensor& run, int64_t first, int64_t width,
                   const std::function<void(int64_t, int64_t, const Tensor&)>& visit) {
  const int64_t end = first + run.numel();
  for (int64_t at = first; at < end;) {
    const int64_t row = at / width, column = at % width;
    const int64_t rows = column == 0 ? (end - at) / width : 0;
    const int64_t count = rows > 0 ? rows * width : std::min(end - at, width - column);
    visit(row, column, run.narrow(0, at - first, count).view({std::max<int64_t>(1, rows), -1}));
    at += count;
  }
}

Tensor ReduceOverUnit(const WholeUnit& unit, ReduceOp op,
                      const std::function<Tensor(int shard)>& of_shard) {
  Tensor total = of_shard(unit.holds_all ? 0 : unit.shard->rank());
  if (unit.holds_all) {
    for (int shard = 1; shard < unit.shard->size(); ++shard) {
      const Tensor next = of_shard(shard);
      op == ReduceOp::kSum ? total.add_(next) : total.copy_(at::maximum(total, next));
    }
  } else if (unit.shard->size() > 1) {
    unit.shard->AllReduce(total, op);
  }
  if (unit.tensor_size() > 1) unit.tensor->AllReduce(total, op);
  return total;
}

}  // namespace shoal
