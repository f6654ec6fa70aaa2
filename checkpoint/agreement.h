// How ranks leave a phase together: no rank returns early while others wait for it in a collective.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// Every rank's string, in rank order, if all ranks are OK; else, on all ranks, the lowest failing
// rank's error, which names it if there is more than one rank. Collective.
absl::StatusOr<std::vector<std::string>> AgreeAndGather(Communicator& comm,
                                                        const absl::StatusOr<std::string>& mine);

// The same without strings. Collective.
absl::Status Agree(Communicator& comm, const absl::Status& mine);

// What `work` (returning a Status or StatusOr) returns; an exception (no memory, a failing tensor
// operation) becomes Internal, so that this rank still comes to the agreement. `work` makes no
// collective calls.
template <typename Work>
auto Guarded(const Work& work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace shoal
