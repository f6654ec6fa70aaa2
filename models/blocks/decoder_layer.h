// One layer of a decoder, pre-norm: x + attention(norm(x)), then the same with the MLP.
//
// Legend: B sequences, T tokens, C channels, N query heads, K key-value heads, H head size.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "models/block.h"
#include "models/blocks/dropout_site.h"
#include "models/blocks/expert_mlp.h"
#include "models/blocks/head_share.h"
#include "models/blocks/mlp.h"
#include "models/blocks/norm_layer.h"
#include "models/blocks/projection.h"
#include "models/blocks/rotary_cache.h"

namespace shoal {

class DecoderLayer : public Block {
 public:
  // `rotary`: nullptr if the positions are learned.
  DecoderLayer(ParameterList& parameters, const ModelConfig& config, int64_t layer,
               std::shared_ptr<RotaryCache> rotary);

  Activations Forward(const ForwardContext& ctx, const Activations& in) const override;
  double ForwardFlopsPerToken(int64_t sequence_length) const override;

 private:
  Tensor Attention(const ForwardContext& ctx, const Tensor& x_BTC) const;

  const int64_t layer_;
  const int64_t head_dim_;
  const HeadShare heads_;         // This rank's
  const double attention_flops_;  // Of all ranks, a token and a place of its sequence
  const double scale_;            // Of q k^T
  const std::shared_ptr<RotaryCache> rotary_;
  // In the order of the parameters.
  const NormLayer attention_norm_;
  const Projection qkv_, o_;
  const DropoutSite attention_dropout_, residual_dropout_, mlp_dropout_;
  const NormLayer mlp_norm_;
  std::optional<Mlp> mlp_;            // Of a layer without experts
  std::optional<ExpertMlp> experts_;  // Of one with
  std::optional<HeadNorm> q_norm_, k_norm_;
};

}  // namespace shoal
