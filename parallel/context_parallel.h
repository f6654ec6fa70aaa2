// Context parallelism: the ranks of a group share each sequence, every operation but attention
// working on a rank's own rows.
//
// A sequence is cut into 2 c pieces for c ranks, and rank i holds pieces i and 2 c - 1 - i, so that
// under the causal mask all have the same to do (Llama Team 2024, "The Llama 3 Herd of Models",
// 3.3.2). Weights are the same on all ranks of a group: their gradients add up as over other data.
//
// What a rank sends for one layer and micro-batch of t own places, of elements of q's type if not
// said otherwise; N query and K key heads of H elements, c ranks:
//   ring     forward   (c-1) 2 t K H: keys and values, from neighbour to neighbour
//            backward  (c-1) 2 t K H, and (c-1) 2 t K H of float32 (float64), their gradients
//   ulysses  forward and backward each  (c-1)/c (2 N + 2 K') t H: q, k, v, the output, all-to-all.
//            K' = K if c divides K, else key heads that several ranks read count once for each
//
// Legend: B sequences, T places of a whole sequence, t = T / c a rank's own, N query heads, K key
// heads, H head size.
#pragma once

#include "core/batch.h"
#include "kernels/attention.h"
#include "parallel/comm/communicator.h"

namespace shoal {

class ContextParallel {
 public:
  enum class Method {
    // Keys and values go round the ranks (Liu et al. 2023, "Ring Attention"). No rank holds more
    // than two ranks' keys at once. A rank sends on what it has before it computes with it: bytes
    // move meanwhile as far as the transport moves them unasked.
    kRing,
    // Places are exchanged for heads before attention and back after it (Jacobs et al. 2023,
    // "DeepSpeed Ulysses"): c divides N.
    kUlysses,
  };

  // `comm` must outlive this.
  ContextParallel(Communicator& comm, Method method) : comm_(comm), method_(method) {}

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  Method method() const { return method_; }

  // The places of a sequence that this rank holds of `own` = T / c; (own) int64 in host memory, two
  // runs in order.
  Tensor Places(int64_t own) const;
  // The first place of this rank's two pieces, of `own` places together.
  int64_t PieceBegin(int rank, int half, int64_t own) const;

  // This rank's places of a batch that all ranks have whole; 2 c divides its T. Targets are counted
  // anew; padding counts as places like others. Documents are numbered by their first place, and
  // with kUlysses, whose attention looks at whole sequences, those of all places come along.
  Batch OwnPlaces(const Batch& whole) const;

  // x: (B, 2, ...), something of each of this rank's pieces of sequences, in host memory. Returns
  // (B, 2 c, ...): of all ranks' pieces, in the order of their places. Collective.
  Tensor AllPieces(const Tensor& own_B2X) const;
  // This rank's of such: (B, 2 c, ...) -> (B, 2, ...).
  Tensor OwnPieces(const Tensor& all_BPX) const;

  // As CausalAttention over whole sequences: q (B, t, N, H), k and v (B, t, K, H) of this rank's
  // places, and so the result. options.documents_BT as OwnPlaces leaves it. Differentiable.
  // Collective, its backward pass too.
  Tensor Attention(const Tensor& q_BtNH, const Tensor& k_BtKH, const Tensor& v_BtKH,
                   const AttentionOptions& options) const;

  // Used by the attention's passes.
  Communicator& comm() const { return comm_; }

 private:
  Communicator& comm_;
  const Method method_;
};

// Key heads that each of `ranks` gets under kUlysses for its `queries` / ranks query heads, in
// order; ranks divides queries. As many for each rank, and as many queries for each of them.
std::vector<int64_t> KeyHeadsOfRanks(int64_t queries, int64_t key_heads, int ranks);

// The two methods.
Tensor RingAttention(const ContextParallel& context, const Tensor& q_BtNH, const Tensor& k_BtKH,
                     const Tensor& v_BtKH, const AttentionOptions& options);
Tensor UlyssesAttention(const ContextParallel& context, const Tensor& q_BtNH, const Tensor& k_BtKH,
                        const Tensor& v_BtKH, const AttentionOptions& options);

}  // namespace shoal
