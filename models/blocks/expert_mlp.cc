#include "models/blocks/expert_mlp.h"

#include <ATen/ATen.h>

#include "core/dtype.h"
#include "kernels/activation.h"
#include "kernels/experts.h"
#include "kernels/linear.h"
#include "models/blocks/activate.h"
#include "models/blocks/projection.h"
#include "models/family.h"
#include "parallel/expert_parallel.h"

namespace shoal {
namespace {

constexpr int kMatricesOfExpert = 3;

}  // namespace

ExpertMlp::ExpertMlp(ParameterList& parameters, const ModelConfig& config)
    : experts_(config.num_experts),
      sigmoid_(config.family->stack.router == StackOptions::Router::kBiasedSigmoid),
      routing_({.choices = config.experts_per_token,
                .groups = config.num_expert_groups,
                .groups_per_token = config.expert_groups_per_token,
                .normalize = config.normalize_expert_weights,
                .scale = config.expert_weight_scale}),
      layers_(static_cast<double>(config.num_expert_layers())),
      balance_scale_(sigmoid_ ? 1.0 / static_cast<double>(routing_.choices) : 1.0),
      activation_(config.activation),
      multiply_adds_(static_cast<double>(config.hidden_size) *
                     static_cast<double>(experts_ + kMatricesOfExpert * routing_.choices *
                                                        config.expert_intermediate_size)) {
  const TensorPlace& place = parameters.place();
  const int64_t channels = config.hidden_size, width = config.expert_intermediate_size;
  const TensorCut::Range range = EvenRange(width, place);
  const auto cut = [&](int dim) {
    TensorCut cut{.dim = dim};
    if (place.size > 1) {
      cut.full_size = width;
      cut.ranges = {range};
    }
    return cut;
  };
  const double stddev = config.initializer_range, down_stddev = ResidualStddev(config);
  router_ = parameters.SharedMatrix("layer.router.weight", {experts_, channels}, stddev);
  if (sigmoid_) selection_bias_ = parameters.Buffer("layer.router.selection_bias", experts_);
  held_experts_ = experts_ / place.expert_size;
  const int64_t inner = range.end - range.begin, first = held_experts_ * place.expert_rank;
  for (int64_t e = first; e < first + held_experts_; ++e) {
    const auto add = [&](const char* slot, std::vector<int64_t> shape, double deviation, int dim) {
      return parameters.ExpertMatrix(slot, e, std::move(shape), deviation, cut(dim));
    };
    const int gate = add("layer.experts.gate.weight", {inner, channels}, stddev, 0);
    add("layer.experts.up.weight", {inner, channels}, stddev, 0);
    add("layer.experts.down.weight", {channels, inner}, down_stddev, 1);
    if (e == first) first_matrix_ = gate;
  }
  if (config.num_shared_experts > 0)
    shared_.emplace(parameters, config, "layer.shared.", config.shared_expert_size());
}

double ExpertMlp::multiply_adds() const {
  return multiply_adds_ + (shared_ ? shared_->multiply_adds() : 0);
}

ExpertMlp::Scores ExpertMlp::Score(const ForwardContext& ctx, const Tensor& x_BTC) const {
  const at::ScalarType sums = SumDtype(x_BTC.scalar_type());
  if (!sigmoid_) {
    const Tensor logits_BTE = Linear(x_BTC, ctx.weights[router_]).to(sums);
    const Tensor probabilities_BTE = at::softmax(logits_BTE, -1);
    return {logits_BTE, probabilities_BTE, probabilities_BTE};
  }
  // As transformers computes them: the product too in float32.
  const Parameter& router = ctx.weights[router_];
  Parameter wide{.value = router.value.detach().to(sums), .grad = router.grad};
  wide.value.set_requires_grad(router.value.requires_grad());
  const Tensor logits_BTE = Linear(x_BTC.to(sums), wide);
  const Tensor scores_BTE = logits_BTE.sigmoid();
  return {logits_BTE, scores_BTE, scores_BTE / scores_BTE.sum(-1, /*keepdim=*/true)};
}

ExpertMlp::Output ExpertMlp::Forward(const ForwardContext& ctx, const Tensor& x_BTC) const {
  const int64_t B = x_BTC.size(0), T = x_BTC.size(1), C = x_BTC.size(2);
  const Scores router = Score(ctx, x_BTC);
  const ContextParallel* context = ctx.routers ? ctx.context : nullptr;
  const int64_t length = context ? T * context->size() : T;  // Of a whole sequence
  RouterOptions options = routing_;
  if (ctx.routers && ctx.routers->capacity_factor > 0) {
    options.capacity =
        ExpertCapacity(ctx.routers->capacity_factor, options.choices, length, experts_);
  }
  const Routing routing = RouteTokens(
      router.scores, sigmoid_ ? ctx.weights[selection_bias_].value : Tensor(), options, context);

  Tensor rows_SC = TokensToRows(x_BTC.reshape({B * T, C}), routing.rows);
  if (ctx.experts) {
    const ExpertParallel::Exchange exchange = ctx.experts->Plan(routing.rows_of_expert);
    rows_SC = ctx.experts->Dispatch(rows_SC, exchange);
    rows_SC = ctx.experts->Return(Experts(ctx.weights, rows_SC, exchange.rows), exchange);
  } else {
    rows_SC = Experts(ctx.weights, rows_SC, routing.rows_of_expert);
  }
  Output out{.part_BTC = RowsToTokens(rows_SC, routing.weights_RK, routing.rows).view({B, T, C}),
             .router_loss = {},
             .routing = {}};
  if (shared_) out.part_BTC = out.part_BTC + shared_->Part(ctx, x_BTC);
  if (!ctx.routers) return out;
  const Tensor balance = BalanceLossSum(router.shares, routing.chosen_in_sequence_BE, length),
               z = ZLossSum(router.logits);
  out.routing = RouterSums{.chosen_E = routing.chosen_BE.sum(0),
                           .dropped = static_cast<double>(routing.dropped),
                           .balance = balance.detach(),
                           .z = z.detach()};
  const double mean = 1.0 / (layers_ * ctx.routers->num_tokens);
  const bool weighted = ctx.routers->balance_coefficient > 0 || ctx.routers->z_coefficient > 0;
  if (weighted && (!ctx.tensor || ctx.tensor->place().rank == 0)) {
    out.router_loss = balance * (ctx.routers->balance_coefficient * balance_scale_ * mean) +
                      z * (ctx.routers->z_coefficient * mean);
  }
  return out;
}

// Rows sorted by expert through this rank's experts.
Tensor ExpertMlp::Experts(std::span<const Parameter> weights, const Tensor& rows_SC,
                          std::span<const int64_t> rows) const {
  std::vector<Parameter> gates, ups, downs, joined;
  for (int64_t e = 0; e < held_experts_; ++e) {
    const auto matrices = weights.subspan(first_matrix_ + e * kMatricesOfExpert, kMatricesOfExpert);
    gates.push_back(matrices[0]);
    ups.push_back(matrices[1]);
    downs.push_back(matrices[2]);
    if (auto both = JoinAdjacent(matrices.first(2))) joined.push_back(*std::move(both));
  }
  Tensor inner_SF;
  if (static_cast<int64_t>(joined.size()) == held_experts_) {
    const Tensor both = GroupedLinear(rows_SC, rows, joined);
    if (activation_ == Activation::kSilu) {
      inner_SF = SwiGluPacked(both);
    } else {
      const std::vector<Tensor> halves = both.chunk(2, 1);
      inner_SF = ActivateGated(activation_, halves[0], halves[1]);
    }
  } else {
    inner_SF = ActivateGated(activation_, GroupedLinear(rows_SC, rows, gates),
                             GroupedLinear(rows_SC, rows, ups));
  }
  return GroupedLinear(inner_SF, rows, downs);
}

}  // namespace shoal
