#include "trainer/router_bias.h"

#include <map>
#include <string>

#include <ATen/ATen.h>

#include "models/family.h"

namespace shoal {

void MoveRouterBiases(const RoutingTotals& routing, const ModelConfig& config, double rate,
                      ShardedParameters& parameters) {
  if (rate == 0) return;
  const at::NoGradGuard no_grad;
  std::map<std::string, int64_t> layer_of;
  for (int64_t layer = config.num_dense_layers; layer < config.num_layers; ++layer)
    layer_of[config.family->WeightName("layer.router.selection_bias", layer)] = layer;
  for (const auto& unit : parameters.units()) {
    const auto specs = unit->layout().specs();
    for (size_t i = 0; i < specs.size(); ++i) {
      if (!specs[i].buffer || !specs[i].trainable) continue;
      const Tensor chosen_E = routing.Chosen(layer_of.at(specs[i].name));
      // Whole numbers: compared without rounding.
      const Tensor sign_E =
          (chosen_E.sum() - chosen_E * static_cast<double>(chosen_E.numel())).sgn();
      Tensor bias_E = unit->parameters()[i].value;
      bias_E.add_(sign_E.to(bias_E.options()), rate);
    }
  }
}

}  // namespace shoal
