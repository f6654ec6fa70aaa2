// Expert parallelism (Lepikhin et al. 2020, GShard): the ranks of a group, which read different
// data, share a layer's experts. Each sends the rows of its tokens to the ranks that hold their
// experts, computes its own experts for the rows of all, and gets its rows back.
//
// A layer sends, of S rows of C channels that a rank's tokens have, those for other ranks' experts:
// S (n-1)/n C elements if tokens spread evenly over n ranks, there and back, forward and backward;
// and once a forward pass the numbers of rows, 8 bytes an expert.
//
// Legend: S rows, sorted by expert; E experts, this rank's part of them, C channels.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/parameter.h"
#include "parallel/comm/communicator.h"

namespace shoal {

class ExpertParallel {
 public:
  // `comm` must outlive this. Rank j of n holds experts [j E/n, (j + 1) E/n).
  explicit ExpertParallel(Communicator& comm) : comm_(comm) {}

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }

  // Who sends whom how much.
  struct Exchange {
    std::vector<int64_t> sent, received;  // Rows to and from each rank
    std::vector<int64_t> rows;            // Of each expert of this rank, from all ranks
    // int64: received row order[i] is row i of this rank's experts, which are sorted by expert and,
    // within one, by the rank they come from; and the inverse.
    Tensor order, place;
  };
  // rows: this rank's for each of all experts. Collective, as are the calls below.
  Exchange Plan(std::span<const int64_t> rows) const;

  // This rank's rows, sorted by expert -> all ranks' rows of this rank's experts, sorted by expert.
  // Differentiable.
  Tensor Dispatch(const Tensor& rows_SC, const Exchange& exchange) const;
  // And back. Differentiable.
  Tensor Return(const Tensor& rows_SC, const Exchange& exchange) const;

 private:
  Communicator& comm_;
};

}  // namespace shoal
