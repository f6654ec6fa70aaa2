#include "models/forward.h"

#include <ATen/ATen.h>

#include "models/batch_on_device.h"

namespace shoal {
namespace {

at::Device DeviceOf(std::span<const std::vector<Parameter>> weights) {
  for (const std::vector<Parameter>& block : weights) {
    if (!block.empty()) return block[0].value.device();
  }
  return at::kCPU;
}

}  // namespace

Activations ForwardAll(const Model& model, std::span<const std::vector<Parameter>> weights,
                       const Batch& batch, const ForwardOptions& options) {
  SHOAL_CHECK(weights.size() == model.blocks.size());
  const at::Device device = DeviceOf(weights);
  const Batch there = BatchOnDevice(batch, device);
  ForwardContext ctx{.weights = {},
                     .batch = &there,
                     .host_batch = &batch,
                     .cache = options.cache,
                     .head_mode = options.head_mode,
                     .loss_denominator = options.loss_denominator,
                     .tensor = options.tensor};
  Activations activations;
  for (size_t b = 0; b < model.blocks.size(); ++b) {
    const bool is_head = b + 1 == model.blocks.size();
    if (is_head && options.only_rows_S.defined()) {
      const Tensor rows_S = options.only_rows_S.to(device, at::kLong, /*non_blocking=*/true);
      activations.hidden_BTC =
          activations.hidden_BTC.flatten(0, 1).index_select(0, rows_S).unsqueeze(1);
    }
    ctx.weights = weights[b];
    activations = model.blocks[b]->Forward(ctx, activations);
  }
  if (options.cache) options.cache->EndPass();
  return activations;
}

}  // namespace shoal
