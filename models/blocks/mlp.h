// The MLP of a layer: down(activation(gate x) * up x), or down(activation(up x)).
//
// Legend: B sequences, T tokens, C channels, F inner width.
#pragma once

#include <string>
#include <vector>

#include "models/block.h"
#include "models/blocks/parameter_list.h"
#include "models/blocks/projection.h"

namespace shoal {

// How the family's matrices lie.
LinearLayout LinearLayoutOf(const ModelConfig& config);
// Of a matrix that writes to the residual stream.
double ResidualStddev(const ModelConfig& config);

class Mlp {
 public:
  // Slots module + "gate", "up" and "down", for module "layer.". Tensor-parallel ranks share the
  // inner `width`.
  Mlp(ParameterList& parameters, const ModelConfig& config, const std::string& module,
      int64_t width);

  // x: all rows, as ForwardContext::Enter gives them; returns what ForwardContext::Leave takes.
  Tensor Part(const ForwardContext& ctx, const Tensor& x_BTC) const;
  // The last matrix's bias, added to the sum of the parts.
  Tensor AddBiasTo(const ForwardContext& ctx, const Tensor& sum_BTC) const {
    return down_.AddBiasTo(ctx.weights, sum_BTC);
  }

  double multiply_adds() const { return up_.multiply_adds() + down_.multiply_adds(); }

 private:
  const bool gated_;
  const Activation activation_;
  const Projection up_, down_;  // In the order of the parameters. up_: gate and up, if gated
};

}  // namespace shoal
