#include "models/batch_on_device.h"

namespace shoal {

Batch BatchOnDevice(const Batch& host, at::Device device) {
  Batch moved = host;
  const auto move = [device](at::Tensor& x) {
    if (x.defined()) x = x.to(device, x.scalar_type(), /*non_blocking=*/true);
  };
  move(moved.tokens_BT);
  move(moved.targets_BT);
  move(moved.positions_BT);
  move(moved.documents_BT);
  for (auto& [name, tensor] : moved.named) move(tensor);
  return moved;
}

}  // namespace shoal
