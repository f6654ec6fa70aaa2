// metrics.jsonl: one JSON object a logged row.
#pragma once

#include <memory>

#include "core/file_system.h"
#include "core/metrics.h"

namespace shoal {

// {"step":3,"loss":2.25,...}: set values in MetricsRow's order, numbers with all their digits (they
// read back to the same float64). A value that is not finite is null, and "non_finite" tells which:
// {"loss":"nan"}.
std::string MetricsJson(const MetricsRow& row);

// Appends to `path`. `last_step`: the step that the run resumes from (0: a new run); rows after it,
// and a last line torn by a crash, are removed first, so that the file is as if the run had never
// stopped. A `path` with another's content (a line that is no row) is refused.
absl::StatusOr<std::unique_ptr<MetricsSink>> OpenJsonlSink(FileSystem& files,
                                                           const std::string& path,
                                                           int64_t last_step);

}  // namespace shoal
