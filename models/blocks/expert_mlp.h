// The MLP of a layer of experts: a router picks a few of several gated MLPs for each token, and
// the token gets their weighted sum (Shazeer et al. 2017; Jiang et al. 2024).
//
// Tensor-parallel ranks share each expert's inner width; each routes all rows, to the same result.
// Expert-parallel ranks hold some of the experts each (parallel/expert_parallel.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "models/block.h"
#include "models/blocks/parameter_list.h"

namespace shoal {

class ExpertMlp {
 public:
  ExpertMlp(ParameterList& parameters, const ModelConfig& config);

  struct Output {
    Tensor part_BTC;  // What ForwardContext::Leave takes
    // In training; see Activations. Of tensor-parallel ranks the first has the loss.
    Tensor router_loss;
    std::optional<RouterSums> routing;
  };
  // x: all rows, as ForwardContext::Enter gives them. With ctx.experts collective over its ranks.
  Output Forward(const ForwardContext& ctx, const Tensor& x_BTC) const;

  double multiply_adds() const { return multiply_adds_; }  // A token's, over all ranks

 private:
  Tensor Experts(std::span<const Parameter> weights, const Tensor& rows_SC,
                 std::span<const int64_t> rows) const;

  const int64_t experts_, choices_;  // Of all ranks; of a token
  const double layers_;              // Losses are means over them
  const Activation activation_;
  const double multiply_adds_;
  int router_ = 0;
  int first_matrix_ = 0;  // gate, up and down of the first expert here, then of the next
  int64_t held_experts_ = 0;
};

}  // namespace shoal
