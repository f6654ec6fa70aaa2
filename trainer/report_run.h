// What a report shows of one run.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/file_system.h"

namespace shoal {

// One logged quantity over the steps. A value that was not finite is nullopt.
struct Curve {
  std::vector<int64_t> steps;
  std::vector<std::optional<double>> values;
};

struct ReportRun {
  std::string name;  // The last name of its folder, or as much more as tells it from the other runs
  std::map<std::string, Curve> curves;  // By the names of metrics.jsonl: "loss", "eval_loss", ...
  int64_t last_step = 0;
  double trained_seconds = 0;    // Sum of the steps' seconds
  int64_t non_finite_steps = 0;  // Logged steps with a value that was not finite
  // "zero.stage" -> "3", of recipe.resolved.yaml, in its order.
  std::vector<std::pair<std::string, std::string>> recipe;
};

absl::StatusOr<std::vector<ReportRun>> ReadReportRuns(
    FileSystem& files, const std::vector<std::string>& run_directories);

// At most about `limit` points: of each stretch of steps the lowest, the highest and what was not
// finite stay, so that no spike is lost.
Curve Thinned(const Curve& curve, int64_t limit);

}  // namespace shoal
