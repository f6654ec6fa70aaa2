// A norm of a block, of either kind.
#pragma once

#include <span>
#include <string>
#include <utility>

#include "models/blocks/parameter_list.h"

namespace shoal {

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
