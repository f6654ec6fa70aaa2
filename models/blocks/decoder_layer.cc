#include "models/blocks/decoder_layer.h"

#include <cmath>

#include <ATen/ATen.h>

#include "kernels/attention.h"
#include "models/family.h"
#include "models/key_value_cache.h"
#include "models/shared_rows.h"
#include "parallel/context_parallel.h"

namespace shoal {
namespace {

double AttentionScale(const ModelConfig& config, int64_t layer) {
  double scale =
      config.scale_attention ? 1.0 / std::sqrt(static_cast<double>(config.head_dim)) : 1.0;
  if (config.scale_attention_by_layer) scale /= static_cast<double>(layer + 1);
  return scale;
}

Projection::Options QkvOptions(const ModelConfig& config, const HeadShare& heads) {
  const bool fused = config.family->stack.attention == StackOptions::Attention::kFused;
  const int64_t q = config.num_heads * config.head_dim,
                kv = config.num_key_value_heads * config.head_dim;
  return {.in = config.hidden_size,
          .slots = fused ? std::vector<std::string>{"layer.qkv"}
                         : std::vector<std::string>{"layer.q", "layer.k", "layer.v"},
          .outs = {q, kv, kv},
          .bias = config.attention_bias,
          .layout = LinearLayoutOf(config),
          .stddev = config.initializer_range,
          .cut = Projection::Options::Cut::kOutputs,
          .ranges = heads.MatrixRanges()};
}

Projection::Options OutputOptions(const ModelConfig& config,
                                  std::vector<std::vector<TensorCut::Range>> ranges) {
  return {.in = config.num_heads * config.head_dim,
          .slots = {"layer.o"},
          .outs = {config.hidden_size},
          .bias = config.attention_bias,
          .layout = LinearLayoutOf(config),
          .stddev = ResidualStddev(config),
          .cut = Projection::Options::Cut::kInputs,
          .ranges = std::move(ranges)};
}

// Inputs of the attention's last product: what this rank's query heads put out.
std::vector<std::vector<TensorCut::Range>> QueryRows(const HeadShare& heads) {
  const auto ranges = heads.MatrixRanges();
  return ranges.empty() ? ranges : std::vector<std::vector<TensorCut::Range>>{ranges[0]};
}

}  // namespace

DecoderLayer::DecoderLayer(ParameterList& parameters, const ModelConfig& config, int64_t layer,
                           std::shared_ptr<RotaryCache> rotary)
    : layer_(layer),
      head_dim_(config.head_dim),
      heads_(config, parameters.place()),
      attention_flops_(static_cast<double>(config.num_heads * config.head_dim)),
      scale_(AttentionScale(config, layer)),
      rotary_(std::move(rotary)),
      attention_norm_(parameters, config, "layer.attention_norm"),
      qkv_(parameters, QkvOptions(config, heads_)),
      o_(parameters, OutputOptions(config, QueryRows(heads_))),
      attention_dropout_(absl::StrCat("layer.", layer, ".attention"), config.dropout.attention),
      residual_dropout_(absl::StrCat("layer.", layer, ".o"), config.dropout.residual),
      mlp_dropout_(absl::StrCat("layer.", layer, ".down"), config.dropout.residual),
      mlp_norm_(parameters, config, "layer.mlp_norm") {
  if (config.has_experts(layer))
    experts_.emplace(parameters, config);
  else
    mlp_.emplace(parameters, config, "layer.", config.intermediate_size);
  if (config.family->stack.qk_norm == StackOptions::QkNorm::kHead) {
    q_norm_.emplace(parameters, config, "layer.q_norm");
    k_norm_.emplace(parameters, config, "layer.k_norm");
  }
  parameters_ = parameters.Take();
  ties_.resize(parameters_.size());
}

Activations DecoderLayer::Forward(const ForwardContext& ctx, const Activations& in) const {
  const Tensor attended_BTC = Attention(ctx, attention_norm_.Forward(ctx.weights, in.hidden_BTC));
  const auto [normed_BTC, sum_BTC] = mlp_norm_.AddForward(ctx.weights, attended_BTC, in.hidden_BTC);
  Activations out;
  if (experts_) {
    ExpertMlp::Output mlp = experts_->Forward(ctx, ctx.Enter(normed_BTC));
    out.hidden_BTC = sum_BTC + mlp_dropout_.Apply(ctx, ctx.Leave(mlp.part_BTC));
    out.router_loss = std::move(mlp.router_loss);
    out.routing = std::move(mlp.routing);
  } else {
    const Tensor part_BTC = mlp_->Part(ctx, ctx.Enter(normed_BTC));
    out.hidden_BTC = sum_BTC + mlp_dropout_.Apply(ctx, mlp_->AddBiasTo(ctx, ctx.Leave(part_BTC)));
  }
  return out;
}

Tensor DecoderLayer::Attention(const ForwardContext& ctx, const Tensor& x_BTC) const {
  const Tensor& positions_BT = ctx.positions();
  const int64_t B = positions_BT.size(0), T = positions_BT.size(1);
  const std::vector<Tensor> qkv = qkv_.Forward(ctx.weights, ctx.Enter(x_BTC), ctx.adapters);
  Tensor q_BTNH = qkv[0].view({B, T, heads_.queries(), head_dim_});
  Tensor k_BTKH = qkv[1].view({B, T, heads_.key_values(), head_dim_});
  Tensor v_BTKH = qkv[2].view({B, T, heads_.key_values(), head_dim_});
  if (q_norm_) {
    q_BTNH = q_norm_->Forward(ctx.weights, q_BTNH);
    k_BTKH = k_norm_->Forward(ctx.weights, k_BTKH);
  }
  if (rotary_) {
    const RotaryTable table = rotary_->For(x_BTC, ctx.InHostMemory().positions_BT);
    q_BTNH = ApplyRotary(q_BTNH, positions_BT, table);
    k_BTKH = ApplyRotary(k_BTKH, positions_BT, table);
  }
  k_BTKH = heads_.ForQueries(k_BTKH);
  v_BTKH = heads_.ForQueries(v_BTKH);
  if (ctx.shared_rows) {
    q_BTNH = ctx.shared_rows->Spread(q_BTNH);
    k_BTKH = ctx.shared_rows->Spread(k_BTKH);
    v_BTKH = ctx.shared_rows->Spread(v_BTKH);
  }
  Tensor out_BTNH;
  if (ctx.cache) {
    out_BTNH = ctx.cache->Attend(layer_, q_BTNH, k_BTKH, v_BTKH, scale_);
  } else {
    const AttentionOptions options{
        .scale = scale_,
        .documents_BT = ctx.batch->documents_BT,
        .dropout = attention_dropout_.OfAttention(ctx, heads_.first_query())};
    out_BTNH = ctx.context ? ctx.context->Attention(q_BTNH, k_BTKH, v_BTKH, options)
                           : CausalAttention(q_BTNH, k_BTKH, v_BTKH, options);
  }
  if (ctx.shared_rows) out_BTNH = ctx.shared_rows->Gather(out_BTNH);
  const Tensor part_BTC = o_.Forward(
      ctx.weights, out_BTNH.reshape({B, T, heads_.queries() * head_dim_}), ctx.adapters)[0];
  return residual_dropout_.Apply(ctx, o_.AddBiasTo(ctx.weights, ctx.Leave(part_BTC)));
}

double DecoderLayer::ForwardFlopsPerToken(int64_t sequence_length) const {
  const double mlp = experts_ ? experts_->multiply_adds() : mlp_->multiply_adds();
  const double products = qkv_.multiply_adds() + o_.multiply_adds() + mlp;
  // q k^T and the weighted sum of v, each N H multiply-adds a visible place, half of the places on
  // average.
  return 2 * (products + attention_flops_ * static_cast<double>(sequence_length));
}

}  // namespace shoal
