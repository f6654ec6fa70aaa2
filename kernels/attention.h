// Scaled dot-product attention that never holds the (T, T) scores (Dao et al. 2022).
#pragma once

#include "core/parameter.h"

namespace torch::autograd {
struct AutogradContext;
}  // namespace torch::autograd

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

// Attention of a run of a sequence's queries to a run of its keys, for who holds the sequence in
// pieces: what each run of keys gives is merged by its log-sum-exp (Milakov & Gimelshein 2018).
struct AttentionPiece {
  double scale = 0;  // As AttentionOptions::scale
  // Of the first query and of the first key in the sequence; the others follow.
  int64_t query_place = 0;
  int64_t key_place = 0;
  Tensor starts_BT = {};  // (B, T) int32: the first place that each query sees; undefined: 0
  AttentionDropout dropout = {};
};

// From a differentiable function's forward pass to its backward pass; places, which its own
// arguments say, are left out.
void SavePiece(torch::autograd::AutogradContext& ctx, const AttentionPiece& piece);
AttentionPiece SavedPiece(torch::autograd::AutogradContext& ctx);

// What queries got from the keys they have met.
struct AttentionSoFar {
  explicit AttentionSoFar(const Tensor& q_BTNH);  // None
  // Of queries that have met all keys.
  AttentionSoFar(Tensor out, Tensor lse) : out_BTNH(std::move(out)), lse_BNT(std::move(lse)) {}
  // Of queries [first, first + count): views.
  AttentionSoFar Narrow(int64_t first, int64_t count) const;

  Tensor out_BTNH;  // As q
  // As out before rounding, float32 (float64); undefined: all keys are met
  Tensor running_BTNH;
  // Base-2 log of the sum of the exponentiated scores; float32 (float64)
  Tensor lse_BNT;

 private:
  AttentionSoFar() = default;
};

// q: (B, T, N, H); k, v: (B, S, K, H). Adds what these keys give to `so_far`, in place; a query
// sees keys of its piece.starts_BT and later up to its own place. Not differentiable.
void AttendPiece(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                 const AttentionPiece& piece, AttentionSoFar& so_far);

// Gradients of q, k and v, float32 (float64), shaped as they are.
struct AttentionSums {
  Tensor q_BTNH, k_BSKH, v_BSKH;
};

// The backward pass of AttendPiece once the queries have met all keys: out and lse are those of
// all. Adds to `sums`, in place.
void AttendPieceBackward(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                         const AttentionPiece& piece, const AttentionSoFar& all,
                         const Tensor& grad_out_BTNH, const AttentionSums& sums);

// (B, T) int32: the first place of each place's document, of documents as AttentionOptions has
// them.
Tensor DocumentStarts(const Tensor& documents_BT);

}  // namespace shoal
