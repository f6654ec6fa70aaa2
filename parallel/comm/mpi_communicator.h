// Ranks started by MPI. On one host: shared memory (host_collectives.h), with MPI only to find each
// other. Across hosts, or on request: MPI's own collectives.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/comm/comm_options.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/mpi_runtime.h"

namespace shoal {

// The group of all ranks; keeps `runtime` alive. Collective. `name()` says which way was taken:
// "shm" or "mpi". kAuto takes "mpi" if the ranks are on several hosts or, on one, cannot open each
// other's memory (containers with separate PID namespaces).
absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(
    std::shared_ptr<MpiRuntime> runtime, const CommOptions& options);

}  // namespace shoal
