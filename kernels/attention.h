// Scaled dot-product attention that never holds the (T, T) scores (Dao et al. 2022).
#pragma once

#include "core/parameter.h"

namespace shoal {

struct AttentionOptions {
  double scale = 0;  // 0: 1 / sqrt(H)
  // (B, T) int32 document of each place: a query sees keys of its own document only. Undefined: one
  // a row.
  Tensor documents_BT;
};

// Causal self-attention for training. q: (B, T, N, H); k, v: (B, T, K, H), K divides N (grouped
// queries). Returns (B, T, N, H). Differentiable in q, k, v; saves the log-sum-exp, not the
// probabilities. Heads may be views out of one product: only each head's row must be dense. The
// same bits on any number of threads. float64 (exactness tests) takes the plain path, which holds
// the (B, N, T, T) scores.
Tensor CausalAttention(const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                       const AttentionOptions& options = {});

// Decoding: q holds the last T of S places, k and v all S. lengths: (B) int64, the valid S of each
// row (keys past it are not read); query t of row b sits at place lengths[b] - T + t. No gradient.
// q: (B, T, N, H), k, v: (B, S, K, H) with S contiguous storage allowed to be longer than valid.
Tensor CachedAttention(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                       const Tensor& lengths_B, double scale = 0);

}  // namespace shoal
