// Tensor parallelism (Shoeybi et al. 2019) with sequence parallelism (Korthikanti et al. 2022): the
// ranks of a group share each block's matrices.
//
// A block enters its first product (cut by outputs) through Enter and leaves its last one (cut by
// inputs) through Leave. Between blocks the residual stream is, with sequence parallelism, this
// rank's equal share of the batch's rows, so norms and additions are shared too; without it, every
// rank holds all rows. Both move the same bytes.
//
// Legend: B sequences, T tokens, C channels, R = B T rows, r = R / ranks (R without sequence
// parallelism), V vocabulary, v this rank's part of it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/parameter.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// A rank's place among those that share each matrix. What a model's shapes depend on.
struct TensorPlace {
  int rank = 0;
  int size = 1;
  bool sequence_parallel = true;
  // Among those that share the experts.
  int expert_rank = 0;
  int expert_size = 1;
};

// [begin, end) of `size` things dealt out in order, the first ranks one more if it does not come
// out even.
TensorCut::Range EvenRange(int64_t size, const TensorPlace& place);

class TensorParallel {
 public:
  // `comm` must outlive this; alone in it, nothing is moved.
  TensorParallel(Communicator& comm, bool sequence_parallel)
      : comm_(comm), sequence_parallel_(sequence_parallel) {}

  TensorPlace place() const { return {comm_.rank(), comm_.size(), sequence_parallel_}; }

  // (r, C) -> (R, C): all rows. Backward: the sum over ranks, of this rank's rows.
  Tensor Enter(const Tensor& x_rC) const;
  // (R, C), a part of a sum -> (r, C), the sum over ranks of this rank's rows. Backward: all rows'.
  Tensor Leave(const Tensor& x_RC) const;

  // This rank's rows of something that every rank has whole. Not differentiable.
  Tensor Rows(const Tensor& x_R) const;

  // Rows of the vocabulary's table by token, a part of a sum: zero where another rank holds it.
  // tokens: (R) int64. weight: (v, C), rows [range.begin, range.end). Returns (R, C).
  Tensor Embedding(const Tensor& tokens_R, const Parameter& weight,
                   const TensorCut::Range& range) const;

  struct VocabularyOptions {
    int64_t vocabulary = 0;  // Over all ranks
    TensorCut::Range range;  // Of it, this rank's
    double denominator = 1.0;
    int64_t ignore_index = -100;
    int64_t chunk_rows = 0;        // 0: chosen so that a chunk's logits stay within a few MB
    double label_smoothing = 0.0;  // Of CrossEntropy: as CrossEntropyOptions has it
  };
  // As LinearCrossEntropy and LinearLogprobs of kernels/cross_entropy.h over a vocabulary that is
  // cut by rows. hidden: (R, C), the same on all ranks; its gradient is a part of a sum, as Enter's
  // backward takes it. Logits exist a chunk of rows at a time. The same result on all ranks.
  Tensor CrossEntropy(const Tensor& hidden_RC, const Parameter& weight_vC, const Tensor& targets_R,
                      const VocabularyOptions& options) const;
  Tensor Logprobs(const Tensor& hidden_RC, const Parameter& weight_vC, const Tensor& targets_R,
                  const VocabularyOptions& options) const;

  // (..., v), this rank's columns of what EvenRange cuts -> (..., columns), all ranks'. Not
  // differentiable.
  Tensor GatherColumns(const Tensor& x, int64_t columns) const;

  // Used by the operations' backward passes. In place.
  void SumOverRanks(Tensor& x) const;
  void MaxOverRanks(Tensor& x) const;
  Tensor GatherRows(const Tensor& x_rC) const;
  Tensor SumScatterRows(const Tensor& x_RC) const;
  bool sequence_parallel() const { return sequence_parallel_; }

 private:
  Communicator& comm_;
  bool sequence_parallel_;
};

}  // namespace shoal
