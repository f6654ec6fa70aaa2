// While it lives, CPU tensors are taken for a device's: every operation that has a kernel in
// kernels/cuda calls it, in the emulator.
#pragma once

#include "kernels/device_kernels.h"
#include "tests/kernels/emulated_kernels.h"

namespace shoal {

class OnEmulatedDevice {
 public:
  OnEmulatedDevice() { RegisterDeviceKernels(c10::DeviceType::CPU, &EmulatedKernels()); }
  ~OnEmulatedDevice() { RegisterDeviceKernels(c10::DeviceType::CPU, nullptr); }
  OnEmulatedDevice(const OnEmulatedDevice&) = delete;
  OnEmulatedDevice& operator=(const OnEmulatedDevice&) = delete;
};

}  // namespace shoal
