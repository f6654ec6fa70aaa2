// A norm of a block, of either kind.
#pragma once

#include <span>
#include <string>
#include <utility>

#include "models/blocks/parameter_list.h"

namespace shoal {

// An RMS norm over each attention head's elements (Henry et al. 2020; Dehghani et al. 2023).
class HeadNorm {
 public:
  // `slot` without its ".weight".
  HeadNorm(ParameterList& parameters, const ModelConfig& config, const std::string& slot)
      : epsilon_(config.norm_epsilon),
        weight_(parameters.SharedScale(slot + ".weight", config.head_dim)) {}

  // x: (..., head_dim)
  Tensor Forward(std::span<const Parameter> weights, const Tensor& x_BTNH) const;

 private:
  double epsilon_;
  int weight_;
};

class NormLayer {
 public:
  // `slot` without its ".weight".
  NormLayer(ParameterList& parameters, const ModelConfig& config, const std::string& slot);

  Tensor Forward(std::span<const Parameter> weights, const Tensor& x_BTC) const;
  // {norm(x + residual), x + residual}
  std::pair<Tensor, Tensor> AddForward(std::span<const Parameter> weights, const Tensor& x_BTC,
                                       const Tensor& residual_BTC) const;

 private:
  bool rms_;
  double epsilon_;
  int weight_;
  int bias_ = -1;
};

}  // namespace shoal
