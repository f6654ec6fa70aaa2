// One time for all ranks.
#pragma once

#include <cstdint>
#include <functional>

#include "core/trace.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// Rank 0's clock is this rank's plus `offset_ns`, to within half of `round_trip_ns`.
struct ClockOffset {
  int64_t at_ns = 0;  // This rank's clock when it was measured
  int64_t offset_ns = 0;
  int64_t round_trip_ns = 0;
};

// By ping-pong with rank 0, one rank after the other: of several exchanges the quickest counts, and
// rank 0 is taken to have looked at its clock half way through (Cristian 1989). Collective.
ClockOffset MeasureClockOffset(Communicator& ranks,
                               const std::function<int64_t()>& clock = TraceNow);

// Linear between two measurements, so that clocks may drift.
int64_t ToRankZero(const ClockOffset& before, const ClockOffset& after, int64_t time_ns);

}  // namespace shoal
