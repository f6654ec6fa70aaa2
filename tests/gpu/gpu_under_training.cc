#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "kernels/device_kernels.h"
#include "tests/fake_device/device_under_training.h"

namespace shoal {

c10::DeviceType DeviceTypeUnderTest() { return at::hasCUDA() ? at::kCUDA : at::kCPU; }

// Tensors that have been made there.
size_t DeviceCalls() {
  auto* allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(at::kCUDA));
  if (allocator == nullptr || !allocator->initialized()) return 0;
  const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  size_t made = 0;
  const int devices = c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount();
  for (c10::DeviceIndex device = 0; device < devices; ++device)
    made += allocator->getDeviceStats(device).allocation[all].allocated;
  return made;
}

KernelsOfDevice::KernelsOfDevice(bool ours) {
  if (ours) return;  // They always are there
  const DeviceKernels* kernels = DeviceKernelsFor(at::empty({0}, at::device(at::kCUDA)));
  RegisterDeviceKernels(at::kCUDA, nullptr);
  held_.reset(static_cast<void*>(this),
              [kernels](void*) { RegisterDeviceKernels(at::kCUDA, kernels); });
}

KernelsOfDevice::~KernelsOfDevice() = default;

}  // namespace shoal
