// Runs a model's blocks forward and backward over sharded weights. Each block is differentiated on
// its own, from the output it left to the input it took, so its weights need to be gathered, and
// its graph to live, just then.
#pragma once

#include <span>
#include <vector>

#include "core/batch.h"
#include "models/model.h"
#include "parallel/sharded_parameters.h"

namespace shoal {

class BlockRunner {
 public:
  // Both must outlive the runner.
  BlockRunner(const Model& model, ShardedParameters& parameters)
      : model_(model), parameters_(parameters) {}

  // Forward and backward of every micro-batch (there are options().micro_batches of them). Leaves
  // the reduced gradients in the optimizer's slices. Returns this rank's sum of target losses /
  // denominator. Collective.
  double ForwardBackward(std::span<const Batch> micro_batches, double denominator);

  // Loss as above, without gradients. Collective.
  double Loss(const Batch& batch, double denominator);

 private:
  struct BlockPass {
    Activations in;  // Its hidden_BTC is a leaf of the block's own graph
    Activations out;
  };

  BlockPass Forward(int block, const Batch& batch, const Tensor& hidden_BTC, double denominator);
  void Backward(int block, int micro_batch, BlockPass pass, Tensor& grad_hidden_BTC);

  const Model& model_;
  ShardedParameters& parameters_;
};

}  // namespace shoal
