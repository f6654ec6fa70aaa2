#include "trainer/profile/clock.h"

#include <ATen/ops/zeros.h>

namespace shoal {
namespace {

constexpr int kPings = 16;

}  // namespace

ClockOffset MeasureClockOffset(Communicator& ranks, const std::function<int64_t()>& clock) {
  at::Tensor time = at::zeros({1}, at::kLong);
  int64_t& cell = *time.mutable_data_ptr<int64_t>();
  ranks.Barrier();
  if (ranks.rank() == 0) {
    for (int peer = 1; peer < ranks.size(); ++peer) {
      for (int ping = 0; ping < kPings; ++ping) {
        ranks.Recv(time, peer);
        cell = clock();
        ranks.Send(time, peer);
      }
    }
    return {.at_ns = clock()};
  }
  ClockOffset best{.round_trip_ns = INT64_MAX};
  for (int ping = 0; ping < kPings; ++ping) {
    const int64_t begin = clock();
    ranks.Send(time, 0);
    ranks.Recv(time, 0);
    const int64_t end = clock();
    if (end - begin >= best.round_trip_ns) continue;
    best = {.at_ns = begin + (end - begin) / 2,
            .offset_ns = cell - (begin + (end - begin) / 2),
            .round_trip_ns = end - begin};
  }
  return best;
}

int64_t ToRankZero(const ClockOffset& before, const ClockOffset& after, int64_t time_ns) {
  const double share = after.at_ns == before.at_ns
                           ? 0.0
                           : static_cast<double>(time_ns - before.at_ns) /
                                 static_cast<double>(after.at_ns - before.at_ns);
  return time_ns + before.offset_ns +
         static_cast<int64_t>(share * static_cast<double>(after.offset_ns - before.offset_ns));
}

}  // namespace shoal
