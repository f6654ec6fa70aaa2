// A test and a measurement of every collective, for `shoal doctor`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace shoal {

struct CollectiveCheck {
  std::string name;  // "AllReduce(bfloat16)"
  bool correct = false;
  std::string problem = "";     // If not correct: got, want and where
  int64_t bytes = 0;            // Of the whole tensor in the timed calls
  double seconds = 0;           // A call: the best of several, on the slowest rank
  double bytes_per_second = 0;  // bytes / seconds
};

// On comm.device(). Sums are compared with what the ranks' values must give, exactly. Collective;
// every rank returns the same. Throws CommError if the group fails, by the timeout at the latest.
std::vector<CollectiveCheck> CheckCollectives(Communicator& comm, int64_t bytes = 4 << 20);

}  // namespace shoal
