#include "parallel/host_to_device.h"

#include <algorithm>

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/dtype.h"
#include "core/status.h"

namespace shoal {
namespace {

Tensor PinnedBytes(int64_t bytes) {
  return at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(true));
}

}  // namespace

HostToDevice::HostToDevice(at::Device device)
    : device_(device),
      buffers_{Buffer{PinnedBytes(kBufferBytes), c10::Event(device.type())},
               Buffer{PinnedBytes(kBufferBytes), c10::Event(device.type())}} {}

void HostToDevice::Copy(const Tensor& from, const Tensor& to) {
  SHOAL_CHECK(from.is_cpu() && to.device() == device_ && from.numel() == to.numel());
  const c10::impl::VirtualGuardImpl device(device_.type());
  const int64_t piece = kBufferBytes / ElementBytes(to.scalar_type());
  for (int64_t first = 0; first < from.numel(); first += piece) {
    const int64_t count = std::min(piece, from.numel() - first);
    Buffer& buffer = buffers_[next_];
    next_ = (next_ + 1) % static_cast<int>(buffers_.size());
    buffer.read.synchronize();
    const Tensor rounded = buffer.memory.view(to.scalar_type()).narrow(0, 0, count);
    rounded.copy_(from.narrow(0, first, count));
    to.narrow(0, first, count).copy_(rounded, /*non_blocking=*/true);
    buffer.read.record(device.getStream(device_));
  }
}

}  // namespace shoal
