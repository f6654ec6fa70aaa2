#include "models/blocks/observation.h"

#include <cmath>

#include <ATen/ATen.h>

#include "kernels/linear.h"
#include "parallel/tensor_parallel.h"

namespace shoal {

ObservationBlock::ObservationBlock(ParameterList& parameters, const ModelConfig& config)
    : observation_size_(config.observation_size), hidden_size_(config.hidden_size) {
  // Observations are of the size of one: hidden states begin so too.
  const double stddev = 1 / std::sqrt(static_cast<double>(observation_size_));
  parameters.Matrix("embedding.observations.weight", {hidden_size_, observation_size_}, stddev);
  parameters.Bias("embedding.observations.bias", hidden_size_);
  parameters_ = parameters.Take();
  ties_.resize(parameters_.size());
}

Activations ObservationBlock::Forward(const ForwardContext& ctx, const Activations& in) const {
  Tensor x = ctx.batch->Named(kName).to(ctx.weights[0].value.options());
  const int64_t B = x.size(0), T = x.size(1);
  if (ctx.tensor) x = ctx.tensor->Rows(x.reshape({B * T, observation_size_}));
  const Tensor y = Linear(x, ctx.weights[0], &ctx.weights[1]);
  const bool shares_rows = ctx.tensor && ctx.tensor->sequence_parallel();
  Activations out;
  out.hidden_BTC = shares_rows ? y.unsqueeze(0) : y.view({B, T, hidden_size_});
  return out;
}

double ObservationBlock::ForwardFlopsPerToken(int64_t sequence_length) const {
  return 2.0 * static_cast<double>(observation_size_ * hidden_size_);
}

}  // namespace shoal
