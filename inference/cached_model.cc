// Legend: R tokens of all pieces, V vocabulary.
#include "inference/cached_model.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "kernels/matmul.h"
#include "models/blocks/head_share.h"

namespace shoal {
namespace {

KeyValueCache::Options CacheOptions(const Model& model, const Tensor& any_weight,
                                    const TensorParallel* tensor) {
  const HeadShare heads(model.config, tensor ? tensor->place() : TensorPlace());
  return {.num_layers = model.config.num_layers,
          .num_key_value_heads = heads.attended_key_values(),
          .head_dim = model.config.head_dim,
          .dtype = any_weight.scalar_type()};
}

}  // namespace

CachedModel::CachedModel(const Model& model, std::span<const std::vector<Parameter>> weights,
                         const TensorParallel* tensor)
    : model_(model),
      weights_(weights),
      tensor_(tensor),
      cache_(CacheOptions(model, weights[0][0].value, tensor)) {
  SHOAL_CHECK(!tensor || !tensor->sequence_parallel())
      << "decoding passes are too short to share their rows";
}

Tensor CachedModel::Read(std::span<const Piece> pieces) {
  // Neither gradients nor views need to be followed: a third of a short pass would go there.
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  std::vector<Tensor> logits;
  for (size_t first = 0; first < pieces.size();) {
    size_t last = first + 1;
    int64_t rows = pieces[first].tokens.size();
    while (last < pieces.size() &&
           rows + static_cast<int64_t>(pieces[last].tokens.size()) <= kMaxRowsOfEqualBits) {
      rows += pieces[last++].tokens.size();
    }
    logits.push_back(ReadTogether(pieces.subspan(first, last - first)));
    first = last;
  }
  return logits.size() == 1 ? logits[0] : at::cat(logits);
}

Tensor CachedModel::ReadTogether(std::span<const Piece> pieces) {
  int64_t rows = 0;
  for (const Piece& piece : pieces) rows += piece.tokens.size();
  const Batch batch = {.tokens_BT = at::empty({1, rows}, at::kLong),
                       .positions_BT = at::empty({1, rows}, at::kLong)};
  const bool all_rows = rows == static_cast<int64_t>(pieces.size());
  const Tensor last = at::empty({all_rows ? 0 : static_cast<int64_t>(pieces.size())}, at::kLong);
  int64_t* tokens = batch.tokens_BT.mutable_data_ptr<int64_t>();
  int64_t* positions = batch.positions_BT.mutable_data_ptr<int64_t>();
  std::vector<KeyValueCache::Segment> segments;
  int64_t row = 0;
  for (const Piece& piece : pieces) {
    const int64_t past = cache_.length(piece.sequence);
    for (size_t i = 0; i < piece.tokens.size(); ++i, ++row) {
      tokens[row] = piece.tokens[i];
      positions[row] = past + static_cast<int64_t>(i);
    }
    if (!all_rows) last.mutable_data_ptr<int64_t>()[segments.size()] = row - 1;
    segments.push_back({piece.sequence, static_cast<int64_t>(piece.tokens.size())});
  }
  cache_.BeginPass(segments);
  const Activations out = ForwardAll(model_, weights_, batch,
                                     {.head_mode = HeadMode::kLogits,
                                      .cache = &cache_,
                                      .only_rows_S = all_rows ? Tensor() : last,
                                      .tensor = tensor_});
  return out.logits_BTV.view({static_cast<int64_t>(pieces.size()), -1});
}

}  // namespace shoal
