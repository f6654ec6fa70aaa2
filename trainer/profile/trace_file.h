// Recorded lanes as Chrome's Trace Event Format, which Perfetto and chrome://tracing open: a rank
// is a process, a lane a thread, a span a complete event ("ph": "X") in microseconds.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/trace.h"
#include "trainer/profile/clock.h"

namespace shoal {

struct RankTrace {
  int rank = 0;
  std::vector<const TraceLane*> lanes;
  ClockOffset before, after;
  int64_t origin_ns = 0;  // Time 0 of the file, on rank 0's clock
};

// The events of one rank, with commas between.
std::string TraceEvents(const RankTrace& trace);
// The file of all ranks; `about` goes into otherData.
std::string TraceFile(const std::vector<std::string>& events_of_ranks, const nlohmann::json& about);

}  // namespace shoal
