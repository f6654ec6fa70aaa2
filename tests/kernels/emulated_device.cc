#include "tests/kernels/device_under_test.h"
#include "tests/kernels/on_emulated_device.h"

namespace shoal {

std::optional<c10::Device> DeviceUnderTest() {
  static const OnEmulatedDevice device;
  return at::kCPU;
}

}  // namespace shoal
