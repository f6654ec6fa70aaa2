#include "models/blocks/dropout_site.h"

#include <ATen/ATen.h>

#include "core/random.h"
#include "kernels/dropout.h"
#include "parallel/context_parallel.h"
#include "parallel/tensor_parallel.h"

namespace shoal {

DropoutSite::DropoutSite(std::string_view name, double rate) : id_(StreamId(name)), rate_(rate) {}

Tensor DropoutSite::Streams(const ForwardContext& ctx) const {
  const Tensor& sequences_B = ctx.batch->sequences_B;
  SHOAL_CHECK(sequences_B.defined()) << "dropout in a batch whose sequences have no numbers";
  const uint64_t site = SubStream(*ctx.dropout_seed, id_);
  Tensor streams_B = at::empty(sequences_B.sizes(), at::kLong);
  for (int64_t b = 0; b < sequences_B.numel(); ++b) {
    const auto sequence = static_cast<uint64_t>(sequences_B.const_data_ptr<int64_t>()[b]);
    streams_B.mutable_data_ptr<int64_t>()[b] = static_cast<int64_t>(SubStream(site, sequence));
  }
  return streams_B;
}

Tensor DropoutSite::Apply(const ForwardContext& ctx, const Tensor& hidden_BTC) const {
  if (!Active(ctx)) return hidden_BTC;
  const int64_t B = ctx.batch->tokens_BT.size(0), T = ctx.batch->tokens_BT.size(1);
  Tensor streams_R = Streams(ctx).unsqueeze(1).expand({B, T}).reshape({-1});
  const Tensor places_T = ctx.context ? ctx.context->Places(T) : at::arange(T, at::kLong);
  Tensor places_R = places_T.expand({B, T}).reshape({-1});
  if (ctx.tensor) {
    streams_R = ctx.tensor->Rows(streams_R);
    places_R = ctx.tensor->Rows(places_R);
  }
  return Dropout(hidden_BTC, rate_, streams_R, places_R);
}

AttentionDropout DropoutSite::OfAttention(const ForwardContext& ctx, int64_t first_head) const {
  if (!Active(ctx)) return {};
  return {.rate = rate_, .keys_B = Streams(ctx), .first_head = first_head};
}

}  // namespace shoal
