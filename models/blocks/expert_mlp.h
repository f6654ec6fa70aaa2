// The MLP of a layer of experts: a router picks a few of several gated MLPs for each token, and
// the token gets their weighted sum (Shazeer et al. 2017; Jiang et al. 2024), plus that of experts
// which all tokens share (Dai et al. 2024), if there are any.
//
// Tensor-parallel ranks share each expert's inner width; each routes all rows, to the same result.
// Expert-parallel ranks hold some of the experts each (parallel/expert_parallel.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "models/block.h"
#include "models/blocks/mlp.h"
#include "models/blocks/parameter_list.h"
#include "models/blocks/router.h"

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
  // x: all rows, as ForwardContext::Enter gives them. With ctx.experts collective over its ranks,
  // in training with ctx.context over those.
  Output Forward(const ForwardContext& ctx, const Tensor& x_BTC) const;

  double multiply_adds() const;  // A token's, over all ranks

 private:
  // What the router says of each token and expert: (B, T, E) logits and scores, and shares that add
  // up to one, of which the load-balancing loss is made.
  struct Scores {
    Tensor logits, scores, shares;
  };
  Scores Score(const ForwardContext& ctx, const Tensor& x_BTC) const;
  Tensor Experts(std::span<const Parameter> weights, const Tensor& rows_SC,
                 std::span<const int64_t> rows) const;

  const int64_t experts_;  // Of all ranks
  const bool sigmoid_;     // See StackOptions::Router
  const RouterOptions routing_;
  const double layers_;  // That have experts: losses are means over them
  // Of the load-balancing loss. With sigmoids f counts choices over k T (DeepSeek-AI 2024,
  // equation 18).
  const double balance_scale_;
  const Activation activation_;
  const double multiply_adds_;
  int router_ = 0, selection_bias_ = -1;  // The latter: -1 without
  int first_matrix_ = 0;  // gate, up and down of the first expert here, then of the next
  int64_t held_experts_ = 0;
  std::optional<Mlp> shared_;
};

}  // namespace shoal
