// What every Communicator must do. RunConformance runs each case on the given group, with tensors
// on its device and in host memory; a backend's test calls it on groups of 1 to 4 ranks. Failures
// are reported through GoogleTest on the rank that sees them.
#pragma once

#include "parallel/comm/communicator.h"

namespace shoal {

void RunConformance(Communicator& comm);

// These leave `comm` unusable. They need at least two ranks.
void RunMismatch(Communicator& comm);
// `comm` has a short timeout.
void RunTimeout(Communicator& comm);

}  // namespace shoal
