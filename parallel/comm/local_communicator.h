// Ranks as threads of one process: what most parallel tests stand on, and the communicator of a run
// with one rank. The collectives are those of processes on one host (host_collectives.h), to the
// last bit.
//
//   absl::Status status = RunRanks(4, [](Communicator& comm) -> absl::Status {
//     at::Tensor x = at::full({3}, comm.rank());
//     comm.AllReduce(x);  // 6, 6, 6
//     return absl::OkStatus();
//   });
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "parallel/comm/comm_options.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// Runs `fn` on `num_ranks` threads, one intra-op thread each, and returns when all have returned.
// An error or an exception of one rank makes the others' waits throw CommError; what comes back is
// the error of the rank that failed first of itself (the lowest, if several did), as "rank R:
// message" with its code (exceptions: kInternal).
absl::Status RunRanks(int num_ranks, std::function<absl::Status(Communicator&)> fn,
                      const CommOptions& options = {});

// A group of one rank, without MPI. Abort ends the process.
std::unique_ptr<Communicator> MakeSingleRankCommunicator();

}  // namespace shoal
