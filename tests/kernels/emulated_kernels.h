// The kernels of kernels/cuda/*.cu, run on the host by cuda_emulator.h: for tests without a GPU.
#pragma once

#include <functional>

#include "kernels/device_kernel_table.h"

namespace shoal {

const DeviceKernels& EmulatedKernels();

// `guard` is called with true before a launch touches its operands' memory, with false when it is
// done; empty: nothing is.
void SetEmulatorMemoryGuard(std::function<void(bool)> guard);

}  // namespace shoal
