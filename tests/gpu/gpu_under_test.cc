#include <ATen/Context.h>

#include "tests/kernels/device_under_test.h"

namespace shoal {

std::optional<c10::Device> DeviceUnderTest() {
  if (!at::hasCUDA()) return std::nullopt;
  return c10::Device(at::kCUDA, 0);
}

}  // namespace shoal
