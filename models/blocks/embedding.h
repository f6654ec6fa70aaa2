// Tokens to hidden states: a row of the vocabulary's table each, plus one of the positions' if they
// are learned.
#pragma once

#include "models/block.h"
#include "models/blocks/dropout_site.h"
#include "models/blocks/parameter_list.h"

namespace shoal {

class EmbeddingBlock : public Block {
 public:
  EmbeddingBlock(ParameterList& parameters, const ModelConfig& config);

  // Throws std::out_of_range for a token or a learned position that the table lacks.
  Activations Forward(const ForwardContext& ctx, const Activations& in) const override;
  double ForwardFlopsPerToken(int64_t sequence_length) const override { return 0; }

  static constexpr int kTokens = 0;  // Place of the vocabulary's table, which a tied head shares

 private:
  int64_t vocab_size_;
  TensorCut::Range rows_;  // Of the vocabulary, this rank's
  int64_t max_positions_;
  int positions_ = -1;
  DropoutSite dropout_;
};

// How tensor-parallel ranks share a table or matrix with a row for every token.
TensorCut VocabularyCut(int64_t vocab_size, const TensorPlace& place);

// Throws std::out_of_range unless all of `indices` (int64 in host memory; `ignored` aside) are in
// [0, size).
void CheckIndices(const Tensor& indices, int64_t size, int64_t ignored, const char* what);

}  // namespace shoal
