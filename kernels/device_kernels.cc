#include "kernels/device_kernels.h"

#include <array>
#include <atomic>

#include "core/status.h"
#include "kernels/fused.h"

#ifdef SHOAL_CUDA
#include "kernels/cuda/cuda_kernels.h"
#endif

namespace shoal {
namespace {

using Tables = std::array<std::atomic<const DeviceKernels*>,
                          static_cast<size_t>(c10::COMPILE_TIME_MAX_DEVICE_TYPES)>;

// One process's devices, as libtorch's own registries are.
Tables& RegisteredTables() {
  static Tables tables = {};
#ifdef SHOAL_CUDA
  static const bool registered = [] {
    tables[static_cast<size_t>(c10::DeviceType::CUDA)] = &cuda::Kernels();
    return true;
  }();
  (void)registered;
#endif
  return tables;
}

bool HasElementType(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}

}  // namespace

void RegisterDeviceKernels(c10::DeviceType type, const DeviceKernels* kernels) {
  RegisteredTables()[static_cast<size_t>(type)] = kernels;
}

const DeviceKernels* DeviceKernelsFor(const Tensor& x) {
  if (!HasElementType(x.scalar_type())) return nullptr;
  return DeviceKernelsFor(x.device().type());
}

const DeviceKernels* DeviceKernelsFor(c10::DeviceType type) {
  return RegisteredTables()[static_cast<size_t>(type)];
}

bool HasKernels(const Tensor& x) { return IsFused(x) || DeviceKernelsFor(x) != nullptr; }

void* StreamOf(const Tensor& x) {
  const DeviceKernels* kernels = DeviceKernelsFor(x);
  SHOAL_CHECK(kernels != nullptr) << "StreamOf: no kernels for " << x.device() << ", "
                                  << x.scalar_type();
  return kernels->current_stream(x.device().index());
}

ElementType ElementTypeOf(at::ScalarType dtype) {
  SHOAL_CHECK(HasElementType(dtype)) << "no kernels for " << dtype;
  if (dtype == at::kFloat) return ElementType::kFloat32;
  return dtype == at::kBFloat16 ? ElementType::kBFloat16 : ElementType::kFloat16;
}

DeviceCall CallOn(const Tensor& x) { return {ElementTypeOf(x.scalar_type()), StreamOf(x)}; }

}  // namespace shoal
