#include "models/blocks/score_head.h"

#include <cmath>

#include <ATen/ATen.h>

#include "core/dtype.h"
#include "kernels/linear.h"
#include "models/shared_rows.h"

namespace shoal {

ScoreHeadBlock::ScoreHeadBlock(ParameterList& parameters, const ModelConfig& config)
    : hidden_size_(config.hidden_size), norm_(parameters, config, "head.norm") {
  weight_ =
      parameters.Named(kWeightName, {1, hidden_size_},
                       {.kind = Initializer::Kind::kNormal,
                        .stddev = 1.0 / std::sqrt(static_cast<double>(config.hidden_size) + 1.0)});
  parameters_ = parameters.Take();
  // Every tensor-parallel rank holds the row, and computes its share of the gradient (see Forward).
  if (parameters.place().size > 1) parameters_[weight_].partial_gradient = true;
  ties_.resize(parameters_.size());
}

Activations ScoreHeadBlock::Forward(const ForwardContext& ctx, const Activations& in) const {
  SHOAL_CHECK(ctx.head_mode == HeadMode::kScores) << "a score head gives scores alone";
  const Tensor normed_BTC = ctx.Enter(norm_.Forward(ctx.weights, in.hidden_BTC));
  const at::ScalarType dtype = SumDtype(normed_BTC.scalar_type());
  Activations out;
  out.scores_BT = Linear(normed_BTC, ctx.weights[weight_]).squeeze(-1).to(dtype);
  if (ctx.shared_rows)
    out.scores_BT = ctx.shared_rows->Spread(out.scores_BT.unsqueeze(-1)).squeeze(-1);
  if (ctx.tensor && out.scores_BT.requires_grad()) {
    // All ranks compute the same scores, and what they hand back is added up.
    const auto ranks = static_cast<double>(ctx.tensor->place().size);
    out.scores_BT.register_hook([ranks](const Tensor& gradient) { return gradient / ranks; });
  }
  return out;
}

double ScoreHeadBlock::ForwardFlopsPerToken(int64_t sequence_length) const {
  return 2.0 * static_cast<double>(hidden_size_);
}

}  // namespace shoal
