// Legend: R tokens of all pieces, S pieces, V vocabulary.
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
          .dtype = any_weight.scalar_type(),
          .device = any_weight.device()};
}

// Of a pass on a device, which so many tokens keep busy.
constexpr int64_t kMaxRowsOnDevice = 2048;

// What chooses tokens (logits.h, beam_search.h) runs on the host. So each step waits for the device
// once and brings 4 V bytes a sequence: 33 MB for 64 sequences and a vocabulary of 128k, a
// millisecond or two over PCIe, where the step's own time is what reading the weights takes.
Tensor InHostMemory(const Tensor& logits_SV) {
  if (logits_SV.is_cpu()) return logits_SV;
  const Tensor host_SV =
      at::empty(logits_SV.sizes(), logits_SV.options().device(at::kCPU).pinned_memory(true));
  return host_SV.copy_(logits_SV);
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
  const int64_t most = on_host() ? kMaxRowsOfEqualBits : kMaxRowsOnDevice;
  std::vector<Tensor> logits;
  for (size_t first = 0; first < pieces.size();) {
    size_t last = first + 1;
    int64_t rows = pieces[first].tokens.size();
    while (last < pieces.size() &&
           rows + static_cast<int64_t>(pieces[last].tokens.size()) <= most) {
      rows += pieces[last++].tokens.size();
    }
    logits.push_back(ReadTogether(pieces.subspan(first, last - first)));
    first = last;
  }
  return InHostMemory(logits.size() == 1 ? logits[0] : at::cat(logits));
}

Tensor CachedModel::ReadTogether(std::span<const Piece> pieces) {
  int64_t rows = 0;
  for (const Piece& piece : pieces) rows += piece.tokens.size();
  const auto ids = at::TensorOptions(at::kLong).pinned_memory(!on_host());
  const Batch batch = {.tokens_BT = at::empty({1, rows}, ids),
                       .positions_BT = at::empty({1, rows}, ids)};
  const bool all_rows = rows == static_cast<int64_t>(pieces.size());
  const Tensor last = at::empty({all_rows ? 0 : static_cast<int64_t>(pieces.size())}, ids);
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
