// NVIDIA's collective library: one GPU a rank, one rank a GPU. In a build without CUDA there are no
// GPUs and no NCCL (nccl_absent.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/comm/comm_options.h"
#include "parallel/comm/communicator.h"

namespace shoal {

struct Gpu {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  std::string uuid;  // That no other GPU has
  int64_t memory_bytes = 0;
  int major = 0, minor = 0;  // Compute capability
};
// Those that this process sees, in the order of their numbers.
std::vector<Gpu> ListGpus();

// What the loaded libraries say: "CUDA 13.0, driver for CUDA 13.1, NCCL 2.28.9"; empty: none built
// in.
std::string CudaVersions();

// Takes `host`, which moves tensors of host memory and serves to meet. `device`: this rank's GPU,
// no other rank's, and the thread's current device. A watch thread looks after the calls: one that
// the GPU does not end within options.timeout, or an error of NCCL's own, ends the job after a line
// from every rank that waits, naming its call; a rank without such a line has not come. What is
// found while a call is made throws CommError. Calls are compared between ranks behind the caller's
// back (call_ledger.h): where they differ the job ends within seconds, or options.timeout if that
// is shorter, after a line that names both. Error: NCCL does not start. Collective.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> host, at::Device device, const CommOptions& options);

}  // namespace shoal
