#include "tests/fake_device/device_under_training.h"
#include "tests/fake_device/fake_kernels.h"

namespace shoal {

c10::DeviceType DeviceTypeUnderTest() { return c10::kPrivateUse1; }

size_t DeviceCalls() { return FakeOperatorCalls(); }

KernelsOfDevice::KernelsOfDevice(bool ours)
    : held_(ours ? std::make_shared<FakeDeviceKernels>() : nullptr) {}

KernelsOfDevice::~KernelsOfDevice() = default;

}  // namespace shoal
