// A place in a block where activations are dropped in training (Srivastava et al. 2014). What is
// dropped is a function of the run's seed, the place's name, the sequence's number and the
// element's place in it (kernels/dropout.h).
#pragma once

#include <string_view>

#include "kernels/attention.h"
#include "models/block.h"

namespace shoal {

class DropoutSite {
 public:
  // `name` is unique in the model.
  DropoutSite(std::string_view name, double rate);

  // hidden: (B, T, C), or under sequence parallelism (1, r, C), this rank's rows. As it is outside
  // of training.
  Tensor Apply(const ForwardContext& ctx, const Tensor& hidden_BTC) const;
  // For the probabilities of attention, whose first head here is `first_head` of all ranks'.
  AttentionDropout OfAttention(const ForwardContext& ctx, int64_t first_head) const;

 private:
  bool Active(const ForwardContext& ctx) const { return rate_ > 0 && ctx.dropout_seed; }
  // (B) int64: a stream for each sequence of the batch.
  Tensor Streams(const ForwardContext& ctx) const;

  uint64_t id_;
  double rate_;
};

}  // namespace shoal
