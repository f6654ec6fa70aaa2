// Losses of a policy and of a critic, a number a token: pure functions, differentiable in the first
// argument. The loss of a step is the sum over tokens of LossWeights times these, divided by the
// number of sequences, whatever the micro-batches and ranks.
//
// Legend: B sequences, T places.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace shoal {

// pi / old of each token; log-ratios are held within +-20 before they are raised, so that no token
// overflows.
at::Tensor ClampedRatio(const at::Tensor& logprobs_BT, const at::Tensor& old_logprobs_BT);

struct ClipOptions {
  double low = 0.2;   // The ratio is held within [1 - low, 1 + high]
  double high = 0.2;  // DAPO: 0.28 (Yu et al. 2025, 3.1)
  double dual = 0;    // Above 1: losses of negative advantages are at most -dual * A (Ye et al.
                      // 2020, "Mastering Complex Control in MOBA Games", eq. 5); 0: off
};
struct PolicyLoss {
  at::Tensor loss_BT;
  at::Tensor ratio_BT;    // Detached
  at::Tensor clipped_BT;  // bool: the clipped branch was taken
};
// max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman et al. 2017, "PPO", eq. 7).
PolicyLoss PpoClipLoss(const at::Tensor& logprobs_BT, const at::Tensor& old_logprobs_BT,
                       const at::Tensor& advantages_BT, const ClipOptions& options);
// The same with one ratio a sequence, the geometric mean of its tokens' (Zheng et al. 2025, "GSPO",
// eq. 7 and 15: the gradient flows through every token alike). `mask_BT` (bool) tells the tokens.
PolicyLoss GspoLoss(const at::Tensor& logprobs_BT, const at::Tensor& old_logprobs_BT,
                    const at::Tensor& advantages_BT, const at::Tensor& mask_BT,
                    const ClipOptions& options);

// 1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) (Schulman et al.'s code; Ouyang
// et al. 2022). clip 0: off.
at::Tensor ValueLoss(const at::Tensor& values_BT, const at::Tensor& old_values_BT,
                     const at::Tensor& returns_BT, double clip);

// Who counts how much in the mean over a global batch.
enum class LossAggregation {
  kTokenMean,      // Every token alike (Yu et al. 2025, DAPO, eq. 8)
  kSequenceMean,   // Every sequence alike, its tokens alike within it (Shao et al. 2024, GRPO)
  kMaximumLength,  // Tokens alike, divided by sequences * the longest allowed (Dr. GRPO)
};
// One weight a token of `mask_BT` (bool), the global batch's, 0 elsewhere; float64. They sum to B,
// but with kMaximumLength.
at::Tensor LossWeights(const at::Tensor& mask_BT, LossAggregation aggregation,
                       int64_t maximum_length);

}  // namespace shoal
