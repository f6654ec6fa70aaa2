// Hidden states to a number a place: a reward, or a value. The final norm, then one row instead of
// the vocabulary's matrix; on disk Hugging Face's sequence classification with one label.
#pragma once

#include "models/block.h"
#include "models/blocks/norm_layer.h"

namespace shoal {

class ScoreHeadBlock : public Block {
 public:
  // The row starts normal with variance 1 / (hidden size + 1) (Stiennon et al. 2020), and trains
  // beside adapters too.
  ScoreHeadBlock(ParameterList& parameters, const ModelConfig& config);

  // HeadMode::kScores only.
  Activations Forward(const ForwardContext& ctx, const Activations& in) const override;
  double ForwardFlopsPerToken(int64_t sequence_length) const override;

  static constexpr char kWeightName[] = "score.weight";

 private:
  const int64_t hidden_size_;
  const NormLayer norm_;
  int weight_;
};

}  // namespace shoal
