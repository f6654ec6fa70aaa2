// A process's place among the ranks of a job: who started it, how it joins, and how a failing rank
// ends all.
//
//   shoal run R.yaml -n 4                 LaunchRanks starts mpirun, which starts this program
//   again mpirun -np 4 shoal run R.yaml         JoinRanks, MPI srun --mpi=pmix shoal run R.yaml
//   JoinRanks, MPI shoal run R.yaml                      JoinRanks, one rank, no MPI
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/comm/comm_options.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/device_communicator.h"

namespace shoal {

struct RankEnvironment {
  std::string launcher;  // "mpirun", "srun"; empty: nobody started this process as a rank
  int rank = 0;
  int size = 1;

  bool started() const { return !launcher.empty(); }
};

// What the launcher's variables say; `variable` is getenv or a test's. `requested_ranks` is -n, 0
// if not given. Error: Slurm started this process as one of several ranks without the means for MPI
// to join them; or -n differs from the number of ranks started.
absl::StatusOr<RankEnvironment> ReadRankEnvironment(
    const std::function<const char*(const char*)>& variable, int requested_ranks);

// True if -n asks for ranks that nobody has started: the caller then returns LaunchRanks' exit
// code.
bool MustLaunch(const RankEnvironment& environment, int requested_ranks);

// Joins the job's other ranks, on the device asked for (device_communicator.h). A rank ends when
// whoever started it does. Without OMP_NUM_THREADS, gives this rank its share of the host's cores
// for tensor operations.
absl::StatusOr<std::unique_ptr<Communicator>> JoinRanks(const RankEnvironment& environment,
                                                        const CommOptions& options,
                                                        DeviceRequest device = DeviceRequest::kCpu);

// Returns if `status` is OK or there is one rank. Else ends all ranks with `exit_code` after one
// line, "shoal: rank R: message"; ranks other than 0 hold back a moment, so that a failure of all
// ranks is told once, by rank 0.
void EndJobOnError(Communicator& comm, const absl::Status& status, int exit_code);

// Before the ranks have joined: returns `status`, on ranks other than 0 after that moment, in which
// the launcher ends a job whose rank 0 has failed likewise.
absl::Status HeldBack(const RankEnvironment& environment, const absl::Status& status);

// Threads for one of `ranks` ranks on this host: its share of the cores this process may use, at
// least 1.
int ThreadsPerRank(int ranks);

}  // namespace shoal
