#include "models/blocks/decoder_layer.h"

#include <cmath>

#include <ATen/ATen.h>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "models/family.h"
#include "models/key_value_cache.h"

namespace shoal {
namespace {

double AttentionScale(const ModelConfig& config, int64_t layer) {
  double scale =
      config.scale_attention ? 1.0 / std::sqrt(static_cast<double>(config.head_dim)) : 1.0;
  if (config.scale_attention_by_layer) scale /= static_cast<double>(layer + 1);
  return scale;
}

LinearLayout LayoutOf(const ModelConfig& config) {
  return config.family->stack.linear == StackOptions::Linear::kOutIn ? LinearLayout::kOutIn
                                                                     : LinearLayout::kInOut;
}

Projection::Options QkvOptions(const ModelConfig& config) {
  const bool fused = config.family->stack.attention == StackOptions::Attention::kFused;
  const int64_t q = config.num_heads * config.head_dim,
                kv = config.num_key_value_heads * config.head_dim;
  return {.in = config.hidden_size,
          .slots = fused ? std::vector<std::string>{"layer.qkv"}
                         : std::vector<std::string>{"layer.q", "layer.k", "layer.v"},
          .outs = {q, kv, kv},
          .bias = config.attention_bias,
          .layout = LayoutOf(config),
          .stddev = config.initializer_range};
}

bool IsGated(const ModelConfig& config) {
  return config.family->stack.mlp == StackOptions::Mlp::kGated;
}

Projection::Options UpOptions(const ModelConfig& config) {
  const int64_t width = config.intermediate_size;
  return {
      .in = config.hidden_size,
      .slots = IsGated(config) ? std::vector<std::string>{"layer.gate", "layer.up"}
                               : std::vector<std::string>{"layer.up"},
      .outs = IsGated(config) ? std::vector<int64_t>{width, width} : std::vector<int64_t>{width},
      .bias = config.mlp_bias,
      .layout = LayoutOf(config),
      .stddev = config.initializer_range};
}

// Of a matrix that writes to the residual stream.
Projection::Options ResidualOptions(const ModelConfig& config, const char* slot, int64_t in,
                                    bool bias) {
  const bool scaled =
      config.family->stack.residual_init == StackOptions::ResidualInit::kDepthScaled;
  return {.in = in,
          .slots = {slot},
          .outs = {config.hidden_size},
          .bias = bias,
          .layout = LayoutOf(config),
          .stddev = config.initializer_range / (scaled ? std::sqrt(2.0 * config.num_layers) : 1.0)};
}

Tensor Activate(Activation activation, const Tensor& x) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGeluTanh:
      return Gelu(x, GeluKind::kTanh);
    case Activation::kGeluErf:
      return Gelu(x, GeluKind::kErf);
    case Activation::kRelu:
      return at::relu(x);
  }
  SHOAL_CHECK(false) << "activation " << static_cast<int>(activation);
  return x;
}

}  // namespace

DecoderLayer::DecoderLayer(ParameterList& parameters, const ModelConfig& config, int64_t layer,
                           std::shared_ptr<RotaryCache> rotary)
    : layer_(layer),
      num_heads_(config.num_heads),
      num_key_value_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      scale_(AttentionScale(config, layer)),
      gated_(IsGated(config)),
      activation_(config.activation),
      rotary_(std::move(rotary)),
      attention_norm_(parameters, config, "layer.attention_norm"),
      qkv_(parameters, QkvOptions(config)),
      o_(parameters, ResidualOptions(config, "layer.o", config.num_heads * config.head_dim,
                                     config.attention_bias)),
      mlp_norm_(parameters, config, "layer.mlp_norm"),
      up_(parameters, UpOptions(config)),
      down_(parameters,
            ResidualOptions(config, "layer.down", config.intermediate_size, config.mlp_bias)) {
  parameters_ = parameters.Take();
  ties_.resize(parameters_.size());
}

Activations DecoderLayer::Forward(const ForwardContext& ctx, const Activations& in) const {
  const Tensor attended_BTC = Attention(ctx, attention_norm_.Forward(ctx.weights, in.hidden_BTC));
  const auto [normed_BTC, sum_BTC] = mlp_norm_.AddForward(ctx.weights, attended_BTC, in.hidden_BTC);
  Activations out;
  out.hidden_BTC = sum_BTC + Mlp(ctx.weights, normed_BTC);
  return out;
}

Tensor DecoderLayer::Attention(const ForwardContext& ctx, const Tensor& x_BTC) const {
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1);
  const std::vector<Tensor> qkv = qkv_.Forward(ctx.weights, x_BTC);
  Tensor q_BTNH = qkv[0].view({B, T, num_heads_, head_dim_});
  Tensor k_BTKH = qkv[1].view({B, T, num_key_value_heads_, head_dim_});
  const Tensor v_BTKH = qkv[2].view({B, T, num_key_value_heads_, head_dim_});
  if (rotary_) {
    const RotaryTable table = rotary_->For(x_BTC, ctx.batch->positions_BT);
    q_BTNH = ApplyRotary(q_BTNH, ctx.batch->positions_BT, table);
    k_BTKH = ApplyRotary(k_BTKH, ctx.batch->positions_BT, table);
  }
  Tensor out_BTNH;
  if (ctx.cache) {
    const KeyValueCache::View past = ctx.cache->Append(layer_, k_BTKH, v_BTKH);
    out_BTNH = CachedAttention(q_BTNH, past.k_BSKH, past.v_BSKH, past.lengths_B, scale_);
  } else {
    out_BTNH = CausalAttention(q_BTNH, k_BTKH, v_BTKH,
                               {.scale = scale_, .documents_BT = ctx.batch->documents_BT});
  }
  return o_.Forward(ctx.weights, out_BTNH.reshape({B, T, num_heads_ * head_dim_}))[0];
}

Tensor DecoderLayer::Mlp(std::span<const Parameter> weights, const Tensor& x_BTC) const {
  const std::vector<Tensor> inner_BTF = up_.Forward(weights, x_BTC);
  if (!gated_) return down_.Forward(weights, Activate(activation_, inner_BTF[0]))[0];
  const Tensor gated_BTF = activation_ == Activation::kSilu
                               ? SwiGlu(inner_BTF[0], inner_BTF[1])
                               : Activate(activation_, inner_BTF[0]) * inner_BTF[1];
  return down_.Forward(weights, gated_BTF)[0];
}

double DecoderLayer::ForwardFlopsPerToken(int64_t sequence_length) const {
  const double products = static_cast<double>(qkv_.multiply_adds() + o_.multiply_adds() +
                                              up_.multiply_adds() + down_.multiply_adds());
  // q k^T and the weighted sum of v, each N H multiply-adds a visible place, half of the places on
  // average.
  const double attention =
      static_cast<double>(num_heads_ * head_dim_) * static_cast<double>(sequence_length);
  return 2 * (products + attention);
}

}  // namespace shoal
