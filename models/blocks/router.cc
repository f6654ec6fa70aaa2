#include "models/blocks/router.h"

#include <cmath>

#include <ATen/ATen.h>

namespace shoal {

Routing RouteTokens(const Tensor& probabilities_BTE, int64_t choices, int64_t capacity) {
  const int64_t B = probabilities_BTE.size(0), T = probabilities_BTE.size(1),
                E = probabilities_BTE.size(2), R = B * T, k = choices;
  const Tensor probabilities_RE = probabilities_BTE.view({R, E});
  Routing routing{.rows = {},
                  .rows_of_expert = std::vector<int64_t>(E, 0),
                  .weights_RK = {},
                  .chosen_BE = at::zeros({B, E}, at::kDouble)};
  const Tensor expert_RK = std::get<1>(at::topk(probabilities_RE.detach(), k)).contiguous();
  const int64_t* expert = expert_RK.const_data_ptr<int64_t>();
  double* chosen = routing.chosen_BE.mutable_data_ptr<double>();
  std::vector<bool> taken(R * k);
  for (int64_t choice = 0; choice < R * k; ++choice) {
    double& before = chosen[choice / k / T * E + expert[choice]];
    taken[choice] = capacity == 0 || before < static_cast<double>(capacity);
    before += 1;
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
  const Tensor likeliest_RK = probabilities_RE.gather(1, expert_RK);
  routing.weights_RK = likeliest_RK / likeliest_RK.sum(1, /*keepdim=*/true);
  if (routing.dropped > 0) {
    Tensor mask_RK = at::empty({R, k}, at::kDouble);
    for (int64_t choice = 0; choice < R * k; ++choice)
      mask_RK.mutable_data_ptr<double>()[choice] = taken[choice] ? 1.0 : 0.0;
    rows.taken_RK = mask_RK.to(probabilities_BTE.scalar_type());
    routing.weights_RK = routing.weights_RK * rows.taken_RK;
  }
  return routing;
}

int64_t ExpertCapacity(double factor, int64_t choices, int64_t tokens, int64_t experts) {
  return static_cast<int64_t>(
      std::ceil(factor * static_cast<double>(choices * tokens) / static_cast<double>(experts)));
}

Tensor BalanceLossSum(const Tensor& probabilities_BTE, const Tensor& chosen_BE) {
  const auto experts = static_cast<double>(probabilities_BTE.size(2)),
             tokens = static_cast<double>(probabilities_BTE.size(1));
  // T * E * sum_e (chosen / T) (sum of probabilities / T)
  return (probabilities_BTE.sum(1) * chosen_BE.to(probabilities_BTE.scalar_type())).sum() *
         (experts / tokens);
}

Tensor ZLossSum(const Tensor& logits_BTE) { return logits_BTE.logsumexp(-1).square().sum(); }

}  // namespace shoal
