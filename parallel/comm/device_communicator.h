// From ranks that have met on their hosts to ranks that compute on devices: which device is whose,
// and which way its tensors go.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/comm/comm_options.h"
#include "parallel/comm/communicator.h"

namespace shoal {

enum class DeviceRequest {
  kAuto,  // GPUs where every rank sees one, else the CPU
  kCpu,
  kCuda,
};

// Error: kCuda in a build without CUDA. All that can be told before ranks meet.
absl::Status CheckBuiltFor(DeviceRequest request);

// GPUs that this process sees; 0 in a build without CUDA.
int NumDevices();

// What a rank tells the others of its place.
struct RankPlace {
  std::string host;               // Equal for the ranks of one host, different else
  std::vector<std::string> gpus;  // Those it sees, by a name that no other GPU has
};
struct DevicePlan {
  int gpu = 0;  // This rank's: its number among the ranks of its host, modulo their GPUs
  bool each_its_own = false;  // Every rank of the job has a GPU that no other has
};
// `places`: of all ranks; each sees a GPU. The same for all ranks but for `gpu`.
DevicePlan PlanDevices(const std::vector<RankPlace>& places, int rank);

// Takes the communicator of all ranks' host memory and returns the one of the device that the rank
// is to compute on; it is made the calling thread's current device, and backward passes run on the
// thread that begins them (UseDevice). kCpu: `host` itself. GPUs: NCCL, if `options.transport` is
// kAuto and every rank has a GPU of its own; else, and for a single rank, through host memory
// (staged_communicator.h). Error, on every rank: kCuda in a build without CUDA, or where a rank
// sees no GPU. Collective.
absl::StatusOr<std::unique_ptr<Communicator>> MakeDeviceCommunicator(
    std::unique_ptr<Communicator> host, DeviceRequest request, const CommOptions& options);

// Makes `device` the calling thread's current one, and lets its backward passes run on this thread
// rather than on one that libtorch keeps per device: a communicator, its pending sends and traces
// are the thread's. A rank on a device begins so.
void UseDevice(at::Device device);

}  // namespace shoal
