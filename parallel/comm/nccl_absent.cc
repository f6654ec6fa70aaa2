// What nccl_communicator.h promises of a build without CUDA.
#include "parallel/comm/nccl_communicator.h"

namespace shoal {

std::vector<Gpu> ListGpus() { return {}; }

std::string CudaVersions() { return ""; }

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(std::unique_ptr<Communicator>,
                                                                   at::Device, const CommOptions&) {
  return absl::FailedPreconditionError("NCCL is not built in: build with the `cuda` preset");
}

}  // namespace shoal
