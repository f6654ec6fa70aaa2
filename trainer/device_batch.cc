#include "trainer/device_batch.h"

#include "models/batch_on_device.h"

namespace shoal {

DeviceBatch MoveToDevice(const Batch& host, const std::optional<SharedRows>& shared,
                         at::Device device) {
  DeviceBatch moved{.host = &host, .batch = BatchOnDevice(host, device), .shared = shared};
  if (!moved.shared) return moved;
  const auto move = [device](at::Tensor& x) {
    if (x.defined()) x = x.to(device, x.scalar_type(), /*non_blocking=*/true);
  };
  move(moved.shared->places_N);
  move(moved.shared->rows_BT);
  move(moved.shared->tokens_1N);
  move(moved.shared->positions_1N);
  return moved;
}

}  // namespace shoal
