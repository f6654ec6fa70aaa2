// Hidden states to what the run asks for: the final norm, then the product with the vocabulary's
// matrix, alone or fused with the cross entropy.
#pragma once

#include "models/block.h"
#include "models/blocks/norm_layer.h"

namespace shoal {

class HeadBlock : public Block {
 public:
  HeadBlock(ParameterList& parameters, const ModelConfig& config);

  // Throws std::out_of_range for a target outside the vocabulary. HeadMode::kLogits: in float32 at
  // least where no gradients are wanted; whole on every tensor-parallel rank, without gradients.
  Activations Forward(const ForwardContext& ctx, const Activations& in) const override;
  double ForwardFlopsPerToken(int64_t sequence_length) const override;

 private:
  const int64_t vocab_size_, hidden_size_;
  const TensorCut::Range rows_;  // Of the vocabulary, this rank's
  const NormLayer norm_;
  int weight_;
};

}  // namespace shoal
