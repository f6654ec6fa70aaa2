// A model: its configuration and its blocks in order (see block.h). It holds no weights.
//
//   SHOAL_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(files, directory));
//   SHOAL_ASSIGN_OR_RETURN(Model model, BuildModel(config));
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "models/block.h"
#include "models/model_config.h"
#include "parallel/tensor_parallel.h"

namespace shoal {

struct Model {
  ModelConfig config;
  std::vector<std::unique_ptr<Block>> blocks;  // Embedding, layers, head

  // Elements of all weights, tied ones once, buffers aside; of all ranks.
  int64_t num_parameters() const;
  // Every weight once, in block order: what a file of this model holds.
  std::vector<ParameterSpec> unique_parameters() const;
  // Of the matrix products, for one token of a sequence of that length (see
  // Block::ForwardFlopsPerToken).
  double ForwardFlopsPerToken(int64_t sequence_length) const;

  // "embedding", "layer 3", "head".
  std::string BlockName(int block) const {
    if (block == 0) return "embedding";
    return block + 1 == static_cast<int>(blocks.size()) ? "head"
                                                        : "layer " + std::to_string(block - 1);
  }
  int64_t vocab_size() const { return config.vocab_size; }
  int64_t max_positions() const { return config.max_positions; }
};

// The part of the model that `place` computes of every block. Errors: a family whose table lacks
// the name of a weight that its blocks have; attention heads that do not divide over the ranks.
absl::StatusOr<Model> BuildModel(const ModelConfig& config, const TensorPlace& place = {});

}  // namespace shoal
