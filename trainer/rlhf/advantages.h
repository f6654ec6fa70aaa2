// How much better than expected an action was: pure functions of rewards and values, the same in
// any order of ranks since they are given the whole rollout.
//
// Legend: B sequences, T places, N = groups x group_size answers, group after group.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace shoal {

struct GaeOptions {
  double gamma = 1.0;
  double lambda = 0.95;
};
struct GaeResult {
  at::Tensor advantages_BT;  // 0 outside of the mask
  at::Tensor returns_BT;     // advantages + values, 0 outside of the mask
};
// delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1} (Schulman et al. 2016,
// "High-Dimensional Continuous Control Using GAE", eq. 11 and 16). `mask_BT` (bool) tells the
// actions' places; t + 1 is the next one of the row. After a row's last action V is `bootstrap_B`:
// 0 where the episode ended, the value of the state that was reached where it was cut. Undefined:
// all 0.
GaeResult GeneralizedAdvantages(const at::Tensor& rewards_BT, const at::Tensor& values_BT,
                                const at::Tensor& mask_BT, const at::Tensor& bootstrap_B,
                                const GaeOptions& options);

// What the difference to the group's mean is divided by.
enum class GroupScale {
  kGroupStd,  // Shao et al. 2024, "DeepSeekMath" (GRPO), 4.1.2
  kBatchStd,  // The deviation over all groups' rewards (Liu et al. 2025, "Tricks or Traps")
  kNone,      // Liu et al. 2025, "Understanding R1-Zero-Like Training" (Dr. GRPO)
};
struct GroupOptions {
  int64_t group_size = 8;  // At least 2
  GroupScale scale = GroupScale::kGroupStd;
  double epsilon = 1e-4;  // Added to the deviation
};
// (r - mean) / (std + epsilon), the sample deviation (divided by n - 1). A group of equal rewards
// yields exact zeros.
at::Tensor GroupAdvantages(const at::Tensor& rewards_N, const GroupOptions& options);

// r_i less the mean of the others of its group (Kool et al. 2019; Ahmadian et al. 2024, "Back to
// Basics", eq. 7: RLOO).
at::Tensor LeaveOneOutAdvantages(const at::Tensor& rewards_N, int64_t group_size);

// Groups whose rewards differ by less than `epsilon`: bool (groups). Nothing is learnt from them
// (Yu et al. 2025, "DAPO", 3.2).
at::Tensor GroupsOfEqualRewards(const at::Tensor& rewards_N, int64_t group_size,
                                double epsilon = 1e-9);

struct WhitenOptions {
  bool shift_mean = true;  // false: the mean is added again
  bool unbiased = true;    // Variance divided by n - 1
  double epsilon = 1e-8;   // Added to the variance
};
// (x - mean) / sqrt(var + epsilon) over the places of `mask_BT` (bool); 0 elsewhere.
at::Tensor Whiten(const at::Tensor& values_BT, const at::Tensor& mask_BT,
                  const WhitenOptions& options = {});

}  // namespace shoal
