#include "models/blocks/embedding.h"

#include <stdexcept>

#include <ATen/ATen.h>

#include "kernels/embedding.h"
#include "models/family.h"

namespace shoal {

void CheckIndices(const Tensor& indices, int64_t size, int64_t ignored, const char* what) {
  if (!indices.is_cpu() || indices.numel() == 0) return;
  const Tensor contiguous = indices.contiguous();
  const int64_t* values = contiguous.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < contiguous.numel(); ++i) {
    if (static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(size) && values[i] != ignored) {
      throw std::out_of_range(absl::StrCat(what, " ", values[i], " is outside the model's ", size));
    }
  }
}

EmbeddingBlock::EmbeddingBlock(ParameterList& parameters, const ModelConfig& config)
    : vocab_size_(config.vocab_size), max_positions_(config.max_positions) {
  const double stddev = config.initializer_range;
  const int tokens =
      parameters.Matrix("embedding.tokens", {vocab_size_, config.hidden_size}, stddev);
  SHOAL_CHECK(tokens == kTokens);
  if (config.family->stack.positions == StackOptions::Positions::kLearned) {
    positions_ =
        parameters.Matrix("embedding.positions", {max_positions_, config.hidden_size}, stddev);
  }
  parameters_ = parameters.Take();
  ties_.resize(parameters_.size());
}

Activations EmbeddingBlock::Forward(const ForwardContext& ctx, const Activations& in) const {
  const Batch& batch = *ctx.batch;
  CheckIndices(batch.tokens_BT, vocab_size_, 0, "token");
  Activations out;
  out.hidden_BTC = Embedding(batch.tokens_BT, ctx.weights[kTokens]);
  if (positions_ >= 0) {
    CheckIndices(batch.positions_BT, max_positions_, 0, "position");
    out.hidden_BTC = out.hidden_BTC + Embedding(batch.positions_BT, ctx.weights[positions_]);
  }
  return out;
}

}  // namespace shoal
