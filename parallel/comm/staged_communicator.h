// The collectives of a host communicator for tensors on a device, through host memory: what ranks
// that share a GPU use, and a machine whose GPUs cannot reach each other.
//
// A tensor is copied to the host (pinned memory for CUDA), moved and reduced there, and what came
// is copied back; so results are those of the host communicator, to the last bit. Each call waits
// for the device. A group of one copies on the device, or not at all.
#pragma once

#include <memory>

#include "parallel/comm/communicator.h"

namespace shoal {

// Takes `host`, whose counters become its own. `name()`: "staged-" and the host's.
std::unique_ptr<Communicator> MakeStagedCommunicator(std::unique_ptr<Communicator> host,
                                                     at::Device device);

}  // namespace shoal
