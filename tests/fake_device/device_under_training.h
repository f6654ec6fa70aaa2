// What device_training_test.cc trains on: the fake device (fake_under_training.cc), or in
// build/cuda a GPU, which its ranks share (tests/gpu/gpu_under_training.cc).
#pragma once

#include <cstddef>
#include <memory>

#include <c10/core/DeviceType.h>

namespace shoal {

// kCPU: this machine has none.
c10::DeviceType DeviceTypeUnderTest();

// Grows with what is asked of the device: a test that compares device and host can see that it did
// not compare the host with itself.
size_t DeviceCalls();

// While it lives, the device has the kernels of kernels/cuda, or only plain ATen operators.
class KernelsOfDevice {
 public:
  explicit KernelsOfDevice(bool ours);
  ~KernelsOfDevice();
  KernelsOfDevice(const KernelsOfDevice&) = delete;
  KernelsOfDevice& operator=(const KernelsOfDevice&) = delete;

 private:
  std::shared_ptr<void> held_;
};

}  // namespace shoal
