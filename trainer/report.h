// The report: one HTML page, without network, that shows one run or several side by side: the
// curves of what they logged, their final figures, and what differs between their recipes.
#pragma once

#include <string>
#include <vector>

#include "core/file_system.h"

namespace shoal {

// The page for the runs in `run_directories`, each with its metrics.jsonl and (if it is there)
// recipe.resolved.yaml. What the files hold is shown as text, whatever it is. NotFound: no run
// there; DataLoss: a line of metrics.jsonl that is no row (one torn by a crash at the very end is
// let pass).
absl::StatusOr<std::string> ReportPage(FileSystem& files,
                                       const std::vector<std::string>& run_directories);

// Writes that page to `output`, in one step.
absl::Status WriteReport(FileSystem& files, const std::vector<std::string>& run_directories,
                         const std::string& output);

}  // namespace shoal
