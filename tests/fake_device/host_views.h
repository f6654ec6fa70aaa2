// What the fake device's operators see: host tensors over device memory.
#pragma once

#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace shoal {

// The host views of one operator's call. Tensors that share a storage on the device share one on
// the host, so that the operator can tell what overlaps.
class HostViews {
 public:
  // The same elements, sizes and strides at addresses that the host may touch. What the operator
  // writes is written. `device_tensor` undefined: undefined.
  at::Tensor Of(const at::Tensor& device_tensor);

  // What the operator returned, on `device`: a view of an argument's storage if it is one, else a
  // copy.
  at::Tensor OnDevice(const at::Tensor& result, c10::Device device) const;

  // After the operator: arguments that it resized are resized on the device.
  void FollowSizes() const;

 private:
  struct Pair {
    at::Tensor device, host;
  };
  std::vector<Pair> pairs_;
  std::unordered_map<const c10::StorageImpl*, c10::Storage> host_of_;
  std::unordered_map<const c10::StorageImpl*, c10::Storage> device_of_;
};

}  // namespace shoal
