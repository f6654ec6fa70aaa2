// The section of `shoal doctor` that takes ranks: every collective, tested and timed.
#pragma once

#include <string>

#include "core/status.h"
#include "launch/doctor_report.h"

namespace shoal {

// Starts `num_ranks` ranks of this program and reports what they found; a rank that does not start,
// ends or hangs is a failure of the section, with what it printed.
ReportSection CollectivesSection(int num_ranks);

// What each of those ranks runs: all collectives over shared memory (where the ranks share a host),
// over MPI and, where each rank sees a GPU, on GPUs. Rank 0 writes the section as JSON to `output`.
absl::Status RunCollectivesRank(const std::string& output);

}  // namespace shoal
