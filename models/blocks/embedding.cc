#include "models/blocks/embedding.h"

#include <stdexcept>

#include <ATen/ATen.h>

#include "kernels/embedding.h"
#include "models/family.h"

namespace shoal {

void CheckIndices(const Tensor& indices, int64_t size, int64_t ignored, const char* what) {
  if (indices.numel() == 0) return;
  const Tensor contiguous = indices.contiguous();
  const int64_t* values = contiguous.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < contiguous.numel(); ++i) {
    if (static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(size) && values[i] != ignored) {
      throw std::out_of_range(absl::StrCat(what, " ", values[i], " is outside the model's ", size));
    }
  }
}

TensorCut VocabularyCut(int64_t vocab_size, const TensorPlace& place) {
  TensorCut cut{.dim = 0};
  if (place.size == 1) return cut;
  cut.full_size = vocab_size;
  cut.ranges = {EvenRange(vocab_size, place)};
  return cut;
}

EmbeddingBlock::EmbeddingBlock(ParameterList& parameters, const ModelConfig& config)
    : vocab_size_(config.vocab_size),
      rows_(EvenRange(config.vocab_size, parameters.place())),
      max_positions_(config.max_positions),
      dropout_("embedding", config.dropout.embedding) {
  const double stddev = config.initializer_range;
  const int tokens =
      parameters.Matrix("embedding.tokens", {rows_.end - rows_.begin, config.hidden_size}, stddev,
                        VocabularyCut(vocab_size_, parameters.place()));
  SHOAL_CHECK(tokens == kTokens);
  if (config.family->stack.positions == StackOptions::Positions::kLearned) {
    positions_ =
        parameters.Matrix("embedding.positions", {max_positions_, config.hidden_size}, stddev);
  }
  parameters_ = parameters.Take();
  ties_.resize(parameters_.size());
}

Activations EmbeddingBlock::Forward(const ForwardContext& ctx, const Activations& in) const {
  CheckIndices(ctx.InHostMemory().tokens_BT, vocab_size_, 0, "token");
  Activations out;
  const Parameter& table = ctx.weights[kTokens];
  Tensor positions = ctx.positions();
  if (ctx.tensor) {
    const Tensor part_RC = ctx.tensor->Embedding(ctx.tokens().reshape({-1}), table, rows_);
    out.hidden_BTC = ctx.Leave(part_RC.view({positions.size(0), positions.size(1), -1}));
    positions = ctx.tensor->Rows(positions.reshape({-1}));
  } else {
    out.hidden_BTC = Embedding(ctx.tokens(), table);
  }
  if (positions_ >= 0) {
    CheckIndices(ctx.InHostMemory().positions_BT, max_positions_, 0, "position");
    out.hidden_BTC =
        out.hidden_BTC + Embedding(positions, ctx.weights[positions_]).view(out.hidden_BTC.sizes());
  }
  out.hidden_BTC = dropout_.Apply(ctx, out.hidden_BTC);
  return out;
}

}  // namespace shoal
