// Scaled dot-product attention that never holds the (T, T) scores (Dao et al. 2022).
#pragma once

#include "core/parameter.h"

namespace shoal {

// Dropout of the probabilities. Key s for query t of head n is at (t, s) of a stream of sequence b
// and head n, heads counted over all ranks.
struct AttentionDropout {
  double rate = 0;
  Tensor keys_B;  // int64: a stream for each sequence
  int64_t first_head = 0;

  uint64_t HeadKey(int64_t b, int64_t n) const;
};

struct AttentionOptions {
  double scale = 0;  // 0: 1 / sqrt(H)
  // (B, T) int32 document of each place: a query sees keys of its own document only. Undefined: one
  // a row.
  Tensor documents_BT = {};
  AttentionDropout dropout = {};
};

// Causal self-attention for training. q: (B, T, N, H); k, v: (B, T, K, H), K divides N (grouped
// queries). Returns (B, T, N, H). Differentiable in q, k, v; saves the log-sum-exp, not the
// probabilities. Heads may be views out of one product: only each head's row must be dense. The
// same bits on any number of threads. float64 (exactness tests) takes the plain path, which holds
// the (B, N, T, T) scores.
Tensor CausalAttention(const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                       const AttentionOptions& options = {});

}  // namespace shoal
