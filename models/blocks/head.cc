#include "models/blocks/head.h"

#include <ATen/ATen.h>

#include "kernels/cross_entropy.h"
#include "kernels/linear.h"
#include "kernels/take_rows.h"
#include "models/blocks/embedding.h"
#include "models/shared_rows.h"

namespace shoal {
namespace {

// Rows that have a target, where a good part has none (prompts, padding); undefined: all are taken.
// In host memory, as the targets.
Tensor RowsWithTargets(const Tensor& targets_R) {
  const Tensor has_target = targets_R.ne(Batch::kIgnoreIndex);
  const auto targets = has_target.sum().item<int64_t>();
  if (targets == 0 || 8 * targets > 7 * targets_R.numel()) return {};
  return at::nonzero(has_target).view({-1});
}

}  // namespace

HeadBlock::HeadBlock(ParameterList& parameters, const ModelConfig& config)
    : vocab_size_(config.vocab_size),
      hidden_size_(config.hidden_size),
      rows_(EvenRange(config.vocab_size, parameters.place())),
      norm_(parameters, config, "head.norm") {
  const char* slot = config.tie_word_embeddings ? "embedding.tokens" : "head.weight";
  weight_ =
      parameters.Matrix(slot, {rows_.end - rows_.begin, hidden_size_}, config.initializer_range,
                        VocabularyCut(vocab_size_, parameters.place()));
  parameters_ = parameters.Take();
  ties_.resize(parameters_.size());
  if (config.tie_word_embeddings)
    ties_[weight_] = TiedTo{.block = 0, .parameter = EmbeddingBlock::kTokens};
}

Activations HeadBlock::Forward(const ForwardContext& ctx, const Activations& in) const {
  const Tensor normed_BTC = ctx.Enter(norm_.Forward(ctx.weights, in.hidden_BTC));
  SHOAL_CHECK(ctx.head_mode != HeadMode::kScores) << "a language model's head gives no scores";
  const Parameter& weight = ctx.weights[weight_];
  Activations out;
  if (ctx.head_mode == HeadMode::kLogits) {
    SHOAL_CHECK(!ctx.shared_rows) << "logits of shared rows";
    out.logits_BTV =
        at::GradMode::is_enabled() ? Linear(normed_BTC, weight) : FloatLinear(normed_BTC, weight);
    if (ctx.tensor) {
      SHOAL_CHECK(!at::GradMode::is_enabled())
          << "gradients of logits that tensor-parallel ranks share";
      out.logits_BTV = ctx.tensor->GatherColumns(out.logits_BTV, vocab_size_);
    }
    return out;
  }
  const Tensor& targets_BT = ctx.batch->targets_BT;
  const Tensor& host_targets_BT = ctx.InHostMemory().targets_BT;
  CheckIndices(host_targets_BT, vocab_size_, Batch::kIgnoreIndex, "target");
  const CrossEntropyOptions options{.denominator = ctx.loss_denominator,
                                    .ignore_index = Batch::kIgnoreIndex,
                                    .label_smoothing = ctx.label_smoothing,
                                    .unit_gradient = ctx.unit_gradient};
  // Logits are linear in the hidden states, so those are what the temperature divides.
  const bool scaled = ctx.head_mode == HeadMode::kLogprobs && ctx.temperature != 1.0;
  Tensor rows_RC = (scaled ? normed_BTC / ctx.temperature : normed_BTC).reshape({-1, hidden_size_}),
         targets_R = targets_BT.reshape({-1});
  // Ranks that share the vocabulary send sums for each row: their bytes follow from shapes alone.
  Tensor places = ctx.tensor ? Tensor() : RowsWithTargets(host_targets_BT.reshape({-1}));
  if (places.defined()) places = places.to(targets_R.device(), at::kLong, /*non_blocking=*/true);
  if (places.defined()) targets_R = targets_R.index_select(0, places);
  if (ctx.shared_rows) {
    const Tensor& rows_BT = ctx.shared_rows->rows_BT;
    rows_RC = TakeRows(rows_RC, places.defined() ? rows_BT.index_select(0, places) : rows_BT);
  } else if (places.defined()) {
    rows_RC = TakeRows(rows_RC, places);
  }
  if (ctx.tensor) {
    const TensorParallel::VocabularyOptions shared{.vocabulary = vocab_size_,
                                                   .range = rows_,
                                                   .denominator = ctx.loss_denominator,
                                                   .ignore_index = Batch::kIgnoreIndex,
                                                   .label_smoothing = ctx.label_smoothing};
    if (ctx.head_mode == HeadMode::kLoss)
      out.loss = ctx.tensor->CrossEntropy(rows_RC, weight, targets_R, shared);
    else
      out.logprobs_BT = ctx.tensor->Logprobs(rows_RC, weight, targets_R, shared);
  } else if (ctx.head_mode == HeadMode::kLoss) {
    out.loss = LinearCrossEntropy(rows_RC, weight, targets_R, options);
  } else {
    out.logprobs_BT = LinearLogprobs(rows_RC, weight, targets_R, options);
  }
  if (ctx.head_mode == HeadMode::kLogprobs) {
    if (places.defined()) {
      out.logprobs_BT = at::zeros({targets_BT.numel()}, out.logprobs_BT.options())
                            .index_copy(0, places, out.logprobs_BT);
    }
    out.logprobs_BT = out.logprobs_BT.view(targets_BT.sizes());
  }
  return out;
}

double HeadBlock::ForwardFlopsPerToken(int64_t sequence_length) const {
  return 2.0 * static_cast<double>(vocab_size_) * static_cast<double>(hidden_size_);
}

}  // namespace shoal
