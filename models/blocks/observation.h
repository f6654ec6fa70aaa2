// Observations of an environment to hidden states: a linear map, in the place of the vocabulary's
// table. The batch carries them by name, (B, T, F) of any floating dtype; its tokens are not read.
//
// Legend: F numbers of an observation.
#pragma once

#include "models/block.h"
#include "models/blocks/parameter_list.h"

namespace shoal {

class ObservationBlock : public Block {
 public:
  ObservationBlock(ParameterList& parameters, const ModelConfig& config);

  Activations Forward(const ForwardContext& ctx, const Activations& in) const override;
  double ForwardFlopsPerToken(int64_t sequence_length) const override;

  static constexpr char kName[] = "observations";  // In Batch::named

 private:
  const int64_t observation_size_, hidden_size_;
};

}  // namespace shoal
