#include "tests/fake_device/host_views.h"

#include <cstring>

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>

#include "core/status.h"
#include "tests/fake_device/fake_memory.h"

namespace shoal {
namespace {

using at::Tensor;

Tensor MakeView(c10::Storage storage, const Tensor& like) {
  const auto key =
      storage.device().is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  Tensor view = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                         c10::DispatchKeySet(key), like.dtype());
  c10::TensorImpl* impl = view.unsafeGetTensorImpl();
  impl->set_storage_offset(like.storage_offset());
  impl->set_sizes_and_strides(like.sizes(), like.strides());
  return view;
}

const void* Begin(const c10::Storage& storage) { return storage.data_ptr().get(); }

}  // namespace

Tensor HostViews::Of(const Tensor& device_tensor) {
  if (!device_tensor.defined()) return {};
  const c10::Storage& device = device_tensor.storage();
  auto known = host_of_.find(device.unsafeGetStorageImpl());
  if (known == host_of_.end()) {
    TORCH_CHECK(Begin(device) != nullptr || device.nbytes() == 0, "the memory of a tensor ",
                device_tensor.sizes(), " on ", device_tensor.device(), " is not there");
    void* address = FakeMemory::Get().HostAddress(Begin(device));
    c10::Storage host(c10::Storage::use_byte_size_t(), device.nbytes(),
                      c10::DataPtr(address, c10::Device(c10::kCPU)), c10::GetCPUAllocator(),
                      /*resizable=*/true);
    known = host_of_.emplace(device.unsafeGetStorageImpl(), host).first;
    device_of_.emplace(host.unsafeGetStorageImpl(), device);
  }
  pairs_.push_back({device_tensor, MakeView(known->second, device_tensor)});
  return pairs_.back().host;
}

Tensor HostViews::OnDevice(const Tensor& result, c10::Device device) const {
  if (!result.defined()) return {};
  if (const auto known = device_of_.find(result.storage().unsafeGetStorageImpl());
      known != device_of_.end())
    return MakeView(known->second, result);
  const c10::DeviceGuard guard(device);
  Tensor copy(at::detail::empty_strided_generic(
      result.sizes(), result.strides(), c10::GetAllocator(c10::kPrivateUse1),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), result.scalar_type()));
  const size_t bytes =
      at::detail::computeStorageNbytes(result.sizes(), result.strides(), result.itemsize());
  if (bytes > 0) {
    std::memcpy(FakeMemory::Get().HostAddress(Begin(copy.storage())), result.const_data_ptr(),
                bytes);
  }
  return copy;
}

void HostViews::FollowSizes() const {
  for (const auto& [device_impl, host] : host_of_) {
    const c10::Storage& device = device_of_.at(host.unsafeGetStorageImpl());
    if (Begin(host) == FakeMemory::Get().HostAddress(Begin(device))) continue;
    const c10::DeviceGuard guard(device.device());
    c10::DataPtr memory = c10::GetAllocator(c10::kPrivateUse1)->allocate(host.nbytes());
    if (host.nbytes() > 0)
      std::memcpy(FakeMemory::Get().HostAddress(memory.get()), Begin(host), host.nbytes());
    device.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(memory));
    device.unsafeGetStorageImpl()->set_nbytes(host.nbytes());
  }
  for (const auto& [device, host] : pairs_) {
    SHOAL_CHECK(device_of_.contains(host.storage().unsafeGetStorageImpl()))
        << "an operator gave an argument another storage";
    c10::TensorImpl* impl = device.unsafeGetTensorImpl();
    if (device.sizes() != host.sizes() || device.strides() != host.strides())
      impl->set_sizes_and_strides(host.sizes(), host.strides());
    if (device.storage_offset() != host.storage_offset())
      impl->set_storage_offset(host.storage_offset());
  }
}

}  // namespace shoal
