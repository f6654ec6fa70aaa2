#include "kernels/locked_memory.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include "kernels/device_kernels.h"

namespace shoal {

Tensor LockedZeros(int64_t numel, at::ScalarType dtype, at::Device device) {
  const Tensor plain = at::zeros({numel}, at::TensorOptions(dtype));
  const DeviceKernels* kernels = DeviceKernelsFor(device.type());
  if (kernels == nullptr || numel == 0) return plain;
  void* memory = plain.mutable_data_ptr();
  if (!kernels->lock_pages(memory, static_cast<int64_t>(plain.nbytes()))) return plain;
  const auto unlock = [plain, kernels](void* address) { kernels->unlock_pages(address); };
  return at::from_blob(memory, {numel}, unlock, plain.options());
}

}  // namespace shoal
