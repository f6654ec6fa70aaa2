// Rows of hidden states that are computed once for all sequences of a micro-batch that begin alike
// (a prompt's answers, a pair's two), and not at all for padding. What a token becomes depends on
// those before it alone, so everything but attention may run over the rows that differ; attention
// sees every sequence whole.
//
// Legend: B sequences, T tokens, N rows.
#pragma once

#include <optional>

#include "core/batch.h"

namespace shoal {

struct SharedRows {
  int64_t num_sequences = 0;
  at::Tensor places_N;   // int64: row n is that of place places_N[n] = b T + t
  at::Tensor rows_BT;    // (B T) int64: the row of each place; 0 for padding
  at::Tensor tokens_1N;  // Batch::tokens_BT and positions_BT of the rows
  at::Tensor positions_1N;

  // (1, N, ...) -> (B, T, ...): each sequence whole. Differentiable, as its inverse.
  at::Tensor Spread(const at::Tensor& x_1N) const;
  // (B, T, ...) -> (1, N, ...).
  at::Tensor Gather(const at::Tensor& x_BT) const;
};

// N is a multiple of `multiple`; rows that only fill it are the first one's. Nothing if the batch
// does not name its lengths, holds documents, or a tenth of its places or less would be saved.
std::optional<SharedRows> ShareRows(const Batch& batch, int64_t multiple);

}  // namespace shoal
