#include "models/blocks/norm_layer.h"

#include <ATen/ATen.h>

#include "kernels/norm.h"
#include "models/family.h"

namespace shoal {

Tensor HeadNorm::Forward(std::span<const Parameter> weights, const Tensor& x_BTNH) const {
  return RmsNorm(x_BTNH, weights[weight_], epsilon_);
}

NormLayer::NormLayer(ParameterList& parameters, const ModelConfig& config, const std::string& slot)
    : rms_(config.family->stack.norm == StackOptions::Norm::kRms), epsilon_(config.norm_epsilon) {
  weight_ = parameters.Scale(slot + ".weight", config.hidden_size);
  if (!rms_) bias_ = parameters.Bias(slot + ".bias", config.hidden_size);
}

Tensor NormLayer::Forward(std::span<const Parameter> weights, const Tensor& x_BTC) const {
  return rms_ ? RmsNorm(x_BTC, weights[weight_], epsilon_)
              : LayerNorm(x_BTC, weights[weight_], weights[bias_], epsilon_);
}

std::pair<Tensor, Tensor> NormLayer::AddForward(std::span<const Parameter> weights,
                                                const Tensor& x_BTC,
                                                const Tensor& residual_BTC) const {
  if (rms_) return AddRmsNorm(x_BTC, residual_BTC, weights[weight_], epsilon_);
  const Tensor sum_BTC = x_BTC + residual_BTC;
  return {Forward(weights, sum_BTC), sum_BTC};
}

}  // namespace shoal
