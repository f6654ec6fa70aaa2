#include "models/blocks/router.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

namespace shoal {

namespace {

// What experts are chosen by: the scores, with the bias, and minus infinity outside of the token's
// groups.
Tensor SelectionScores(const Tensor& scores_RE, const Tensor& bias_E,
                       const RouterOptions& options) {
  Tensor selection_RE = scores_RE.detach();
  if (bias_E.defined()) selection_RE = selection_RE + bias_E;
  if (options.groups == 1) return selection_RE;
  const Tensor grouped_RGe = selection_RE.view({selection_RE.size(0), options.groups, -1});
  const Tensor group_RG = std::get<0>(grouped_RGe.topk(2)).sum(-1);
  const Tensor best_Rg = std::get<1>(group_RG.topk(options.groups_per_token));
  const Tensor outside_RG = at::ones_like(group_RG, at::kBool).scatter(1, best_Rg, false);
  return grouped_RGe.masked_fill(outside_RG.unsqueeze(-1), -std::numeric_limits<double>::infinity())
      .view(selection_RE.sizes());
}

}  // namespace

Routing RouteTokens(const Tensor& scores_BTE, const Tensor& bias_E, const RouterOptions& options,
                    const ContextParallel* context) {
  const int64_t B = scores_BTE.size(0), T = scores_BTE.size(1), E = scores_BTE.size(2), R = B * T,
                k = options.choices, capacity = options.capacity;
  const Tensor scores_RE = scores_BTE.view({R, E});
  Routing routing{.rows = {},
                  .rows_of_expert = std::vector<int64_t>(E, 0),
                  .weights_RK = {},
                  .chosen_BE = {},
                  .chosen_in_sequence_BE = {}};
  const Tensor expert_RK =
      std::get<1>(at::topk(SelectionScores(scores_RE, bias_E, options), k)).contiguous();
  const at::Device device = scores_BTE.device();
  const Tensor host_expert_RK =
      expert_RK.to(at::kCPU);  // Counts decide sizes: a device is waited for
  const int64_t* expert = host_expert_RK.const_data_ptr<int64_t>();
  // These tokens are P pieces of each sequence, end to end.
  const int64_t P = context ? 2 : 1, choices_of_piece = T / P * k;
  const Tensor chosen_BPE = at::zeros({B, P, E}, at::kDouble);
  auto* chosen = chosen_BPE.mutable_data_ptr<double>();
  for (int64_t choice = 0; choice < R * k; ++choice)
    chosen[choice / choices_of_piece * E + expert[choice]] += 1;
  routing.chosen_BE = chosen_BPE.sum(1);
  routing.chosen_in_sequence_BE = routing.chosen_BE;
  Tensor earlier_BPE = at::zeros_like(chosen_BPE);
  if (context) {
    const Tensor all_BQE = context->AllPieces(chosen_BPE);
    routing.chosen_in_sequence_BE = all_BQE.sum(1);
    earlier_BPE = context->OwnPieces(all_BQE.cumsum(1) - all_BQE);
  }
  auto* before = earlier_BPE.mutable_data_ptr<double>();
  std::vector<bool> taken(R * k);
  for (int64_t choice = 0; choice < R * k; ++choice) {
    double& chosen_before = before[choice / choices_of_piece * E + expert[choice]];
    taken[choice] = capacity == 0 || chosen_before < static_cast<double>(capacity);
    chosen_before += 1;
    if (taken[choice])
      ++routing.rows_of_expert[expert[choice]];
    else
      ++routing.dropped;
  }
  std::vector<int64_t> next(E, 0);  // The next row of each expert
  for (int64_t e = 1; e < E; ++e) next[e] = next[e - 1] + routing.rows_of_expert[e - 1];
  ExpertRows& rows = routing.rows;
  rows.choice_S = at::empty({R * k - routing.dropped}, at::kLong);
  rows.row_RK = at::zeros({R, k}, at::kLong);
  int64_t *choice_of = rows.choice_S.mutable_data_ptr<int64_t>(),
          *row_of = rows.row_RK.mutable_data_ptr<int64_t>();
  for (int64_t choice = 0; choice < R * k; ++choice) {
    if (!taken[choice]) continue;
    const int64_t row = next[expert[choice]]++;
    choice_of[row] = choice;
    row_of[choice] = row;
  }
  rows.choice_S = rows.choice_S.to(device, at::kLong, /*non_blocking=*/true);
  rows.row_RK = rows.row_RK.to(device, at::kLong, /*non_blocking=*/true);
  routing.weights_RK = scores_RE.gather(1, expert_RK);
  // Sigmoids may all be next to nothing; of a softmax's the sum is never so small.
  constexpr double kTiny = 1e-20;
  if (options.normalize)
    routing.weights_RK = routing.weights_RK / (routing.weights_RK.sum(1, /*keepdim=*/true) + kTiny);
  if (options.scale != 1) routing.weights_RK = routing.weights_RK * options.scale;
  if (routing.dropped > 0) {
    Tensor mask_RK = at::empty({R, k}, at::kDouble);
    for (int64_t choice = 0; choice < R * k; ++choice)
      mask_RK.mutable_data_ptr<double>()[choice] = taken[choice] ? 1.0 : 0.0;
    rows.taken_RK = mask_RK.to(scores_BTE.options(), /*non_blocking=*/true);
    routing.weights_RK = routing.weights_RK * rows.taken_RK;
  }
  return routing;
}

int64_t ExpertCapacity(double factor, int64_t choices, int64_t tokens, int64_t experts) {
  return static_cast<int64_t>(
      std::ceil(factor * static_cast<double>(choices * tokens) / static_cast<double>(experts)));
}

Tensor BalanceLossSum(const Tensor& probabilities_BTE, const Tensor& chosen_BE, int64_t length) {
  // T * E * sum_e (chosen / T) (sum of probabilities / T)
  return (probabilities_BTE.sum(1) *
          chosen_BE.to(probabilities_BTE.options(), /*non_blocking=*/true))
             .sum() *
         (static_cast<double>(probabilities_BTE.size(2)) / static_cast<double>(length));
}

Tensor ZLossSum(const Tensor& logits_BTE) { return logits_BTE.logsumexp(-1).square().sum(); }

}  // namespace shoal
