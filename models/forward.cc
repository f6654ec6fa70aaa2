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
                     .loss_denominator = options.loss_denominator,
                     .tensor = options.tensor};
  Activations activations;
  for (size_t b = 0; b < model.blocks.size(); ++b) {
    const bool is_head = b + 1 == model.blocks.size();
    if (is_head && options.only_rows_S.defined()) {
      activations.hidden_BTC =
          activations.hidden_BTC.flatten(0, 1).index_select(0, options.only_rows_S).unsqueeze(1);
    }
    ctx.weights = weights[b];
    activations = model.blocks[b]->Forward(ctx, activations);
  }
  if (options.cache) options.cache->EndPass();
  return activations;
}

}  // namespace shoal
