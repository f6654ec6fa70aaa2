#include "trainer/rlhf/advantages.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/status.h"

namespace shoal {

using at::Tensor;

GaeResult GeneralizedAdvantages(const Tensor& rewards_BT, const Tensor& values_BT,
                                const Tensor& mask_BT, const Tensor& bootstrap_B,
                                const GaeOptions& options) {
  const int64_t T = rewards_BT.size(1);
  Tensor next_value_B = bootstrap_B.defined()
                            ? bootstrap_B.to(values_BT.scalar_type())
                            : at::zeros({rewards_BT.size(0)}, values_BT.options());
  Tensor next_advantage_B = at::zeros_like(next_value_B);
  Tensor advantages_BT = at::zeros_like(values_BT);
  for (int64_t t = T - 1; t >= 0; --t) {
    const Tensor value_B = values_BT.select(1, t), acts_B = mask_BT.select(1, t);
    const Tensor delta_B = rewards_BT.select(1, t) + options.gamma * next_value_B - value_B;
    const Tensor advantage_B = delta_B + options.gamma * options.lambda * next_advantage_B;
    advantages_BT.select(1, t).copy_(at::where(acts_B, advantage_B, at::zeros_like(advantage_B)));
    next_value_B = at::where(acts_B, value_B, next_value_B);
    next_advantage_B = at::where(acts_B, advantage_B, next_advantage_B);
  }
  return {.advantages_BT = advantages_BT,
          .returns_BT = at::where(mask_BT, advantages_BT + values_BT, advantages_BT)};
}

namespace {

Tensor InGroups(const Tensor& rewards_N, int64_t group_size) {
  SHOAL_CHECK(group_size >= 2 && rewards_N.numel() % group_size == 0)
      << rewards_N.numel() << " rewards in groups of " << group_size;
  return rewards_N.view({-1, group_size});
}

Tensor Spread(const Tensor& groups_GK) {
  return groups_GK.amax(1, /*keepdim=*/true) - groups_GK.amin(1, /*keepdim=*/true);
}

}  // namespace

Tensor GroupAdvantages(const Tensor& rewards_N, const GroupOptions& options) {
  const Tensor groups_GK = InGroups(rewards_N, options.group_size);
  // The mean of equal numbers may differ from them in the last bit.
  const Tensor centred_GK =
      at::where(Spread(groups_GK) == 0, at::zeros_like(groups_GK),
                groups_GK - groups_GK.mean(at::IntArrayRef{1}, /*keepdim=*/true));
  switch (options.scale) {
    case GroupScale::kGroupStd:
      return (centred_GK / (groups_GK.std(at::IntArrayRef{1}, /*unbiased=*/true, /*keepdim=*/true) +
                            options.epsilon))
          .view_as(rewards_N);
    case GroupScale::kBatchStd:
      return (centred_GK / (rewards_N.std(/*unbiased=*/true) + options.epsilon)).view_as(rewards_N);
    case GroupScale::kNone:
      break;
  }
  return centred_GK.view_as(rewards_N);
}

Tensor LeaveOneOutAdvantages(const Tensor& rewards_N, int64_t group_size) {
  const Tensor groups_GK = InGroups(rewards_N, group_size);
  const Tensor others_GK = (groups_GK.sum(1, /*keepdim=*/true) - groups_GK) / (group_size - 1);
  return at::where(Spread(groups_GK) == 0, at::zeros_like(groups_GK), groups_GK - others_GK)
      .view_as(rewards_N);
}

Tensor GroupsOfEqualRewards(const Tensor& rewards_N, int64_t group_size, double epsilon) {
  return Spread(InGroups(rewards_N, group_size)).squeeze(1) < epsilon;
}

Tensor Whiten(const Tensor& values_BT, const Tensor& mask_BT, const WhitenOptions& options) {
  const Tensor mask = mask_BT.to(values_BT.scalar_type());
  const Tensor count = mask.sum();
  const Tensor mean = (values_BT * mask).sum() / count;
  const Tensor centred_BT = (values_BT - mean) * mask;
  const Tensor degrees = options.unbiased ? (count - 1).clamp_min(1) : count;
  const Tensor variance = centred_BT.square().sum() / degrees;
  const Tensor scaled_BT = centred_BT * at::rsqrt(variance + options.epsilon);
  return options.shift_mean ? scaled_BT : scaled_BT + mean * mask;
}

}  // namespace shoal
