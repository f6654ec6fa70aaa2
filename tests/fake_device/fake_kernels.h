// The CUDA kernels, run by the emulator on the fake device's memory.
#pragma once

#include "kernels/device_kernels.h"
#include "tests/fake_device/fake_device.h"
#include "tests/kernels/emulated_kernels.h"

namespace shoal {

// While it lives, the fake device has the kernels of kernels/cuda (float32 and the halves); without
// it, plain ATen operators serve.
class FakeDeviceKernels {
 public:
  FakeDeviceKernels() {
    SetEmulatorMemoryGuard([](bool open) { open ? OpenFakeMemory() : CloseFakeMemory(); });
    RegisterDeviceKernels(c10::kPrivateUse1, &EmulatedKernels());
  }
  ~FakeDeviceKernels() {
    RegisterDeviceKernels(c10::kPrivateUse1, nullptr);
    SetEmulatorMemoryGuard({});
  }
  FakeDeviceKernels(const FakeDeviceKernels&) = delete;
  FakeDeviceKernels& operator=(const FakeDeviceKernels&) = delete;
};

}  // namespace shoal
