#include "models/model.h"

#include "models/blocks/decoder_layer.h"
#include "models/blocks/embedding.h"
#include "models/blocks/head.h"
#include "models/family.h"

namespace shoal {

int64_t Model::num_parameters() const {
  int64_t total = 0;
  for (const ParameterSpec& spec : unique_parameters()) {
    int64_t numel = 1;
    for (int64_t size : spec.full_shape()) numel *= size;
    total += numel;
  }
  return total;
}

std::vector<ParameterSpec> Model::unique_parameters() const {
  std::vector<ParameterSpec> specs;
  for (const auto& block : blocks) {
    for (size_t i = 0; i < block->parameters().size(); ++i) {
      if (!block->ties()[i]) specs.push_back(block->parameters()[i]);
    }
  }
  return specs;
}

double Model::ForwardFlopsPerToken(int64_t sequence_length) const {
  double flops = 0;
  for (const auto& block : blocks) flops += block->ForwardFlopsPerToken(sequence_length);
  return flops;
}

absl::StatusOr<Model> BuildModel(const ModelConfig& config, const TensorPlace& place) {
  if (config.num_heads % place.size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(config.num_heads, " attention heads do not divide over tensor_parallel ",
                     place.size, ", expected a divisor of ", config.num_heads));
  }
  Model model;
  model.config = config;
  const auto add = [&](int64_t layer, const auto& make) -> absl::Status {
    ParameterList parameters(model.config, layer, place);
    model.blocks.push_back(make(parameters));
    return parameters.status();
  };
  SHOAL_RETURN_IF_ERROR(
      add(0, [&](ParameterList& list) { return std::make_unique<EmbeddingBlock>(list, config); }));
  std::shared_ptr<RotaryCache> rotary;
  if (config.family->stack.positions == StackOptions::Positions::kRotary) {
    rotary = std::make_shared<RotaryCache>(config.rope, config.head_dim, config.max_positions);
  }
  for (int64_t i = 0; i < config.num_layers; ++i) {
    SHOAL_RETURN_IF_ERROR(add(i, [&](ParameterList& list) {
      return std::make_unique<DecoderLayer>(list, config, i, rotary);
    }));
  }
  SHOAL_RETURN_IF_ERROR(
      add(0, [&](ParameterList& list) { return std::make_unique<HeadBlock>(list, config); }));
  return model;
}

}  // namespace shoal
