#include "trainer/device_batch.h"

namespace shoal {

DeviceBatch MoveToDevice(const Batch& host, const std::optional<SharedRows>& shared,
                         at::Device device) {
  // Without waiting for the device: host memory that is not pinned has been read when a copy
  // returns.
  const auto move = [device](at::Tensor& x) {
    if (x.defined()) x = x.to(device, x.scalar_type(), /*non_blocking=*/true);
  };
  DeviceBatch moved{.host = &host, .batch = host, .shared = shared};
  move(moved.batch.tokens_BT);
  move(moved.batch.targets_BT);
  move(moved.batch.positions_BT);
  move(moved.batch.documents_BT);
  for (auto& [name, tensor] : moved.batch.named) move(tensor);
  if (!moved.shared) return moved;
  move(moved.shared->places_N);
  move(moved.shared->rows_BT);
  move(moved.shared->tokens_1N);
  move(moved.shared->positions_1N);
  return moved;
}

}  // namespace shoal
