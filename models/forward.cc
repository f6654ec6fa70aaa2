#include "models/forward.h"

#include <ATen/ATen.h>

namespace shoal {

Activations ForwardAll(const Model& model, std::span<const std::vector<Parameter>> weights,
                       const Batch& batch, const ForwardOptions& options) {
  SHOAL_CHECK(weights.size() == model.blocks.size());
  ForwardContext ctx{.weights = {},
                     .batch = &batch,
                     .cache = options.cache,
                     .head_mode = options.head_mode,
                     .loss_denominator = options.loss_denominator};
  Activations activations;
  for (size_t b = 0; b < model.blocks.size(); ++b) {
    const bool is_head = b + 1 == model.blocks.size();
    if (is_head && options.only_place_B.defined()) {
      const Tensor rows_B = at::arange(batch.tokens_BT.size(0), options.only_place_B.options());
      activations.hidden_BTC =
          activations.hidden_BTC.index({rows_B, options.only_place_B}).unsqueeze(1);
    }
    ctx.weights = weights[b];
    activations = model.blocks[b]->Forward(ctx, activations);
  }
  if (options.cache) options.cache->Advance(batch.tokens_BT.size(1));
  return activations;
}

}  // namespace shoal
