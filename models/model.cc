#include "models/model.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "models/adapters/lora.h"
#include "models/blocks/decoder_layer.h"
#include "models/blocks/embedding.h"
#include "models/blocks/head.h"
#include "models/blocks/image_classifier.h"
#include "models/blocks/observation.h"
#include "models/blocks/score_head.h"
#include "models/family.h"

namespace shoal {

int64_t Model::num_parameters() const {
  int64_t total = 0;
  for (const ParameterSpec& spec : unique_parameters())
    total += spec.buffer ? 0 : spec.full_numel() * spec.expert_ranks;
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

namespace {

// NotFound: a target that is no matrix of the layers.
absl::Status CheckLoraTargets(const Model& model) {
  std::set<std::string> modules;
  for (const auto& block : model.blocks) {
    for (const ParameterSpec& spec : block->parameters()) {
      const size_t end = spec.name.rfind(".lora_A.weight");
      if (spec.adapter && end != std::string::npos) modules.insert(spec.name.substr(0, end));
    }
  }
  for (const std::string& target : model.config.lora->targets) {
    if (target == LoraOptions::kAllLinear) continue;
    LoraOptions one = *model.config.lora;
    one.targets = {target};
    if (std::any_of(modules.begin(), modules.end(),
                    [&](const std::string& module) { return IsLoraTarget(one, module); }))
      continue;
    return absl::NotFoundError(absl::StrCat(
        "\"", target, "\" is no matrix of this model's layers, expected the end of a name such as ",
        model.config.family->WeightName("layer.o.weight")));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Model> BuildModel(const ModelConfig& config, const TensorPlace& place) {
  if (config.num_heads % place.size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(config.num_heads, " attention heads do not divide over tensor_parallel ",
                     place.size, ", expected a divisor of ", config.num_heads));
  }
  if (place.expert_size > 1 && config.num_experts % place.expert_size != 0) {
    return absl::InvalidArgumentError(
        config.num_experts == 0
            ? absl::StrCat("family ", config.family->model_type, " has no experts, expected 1")
            : absl::StrCat(config.num_experts, " experts do not divide over expert_parallel ",
                           place.expert_size, ", expected a divisor of ", config.num_experts));
  }
  if (config.family->stack.kind == StackOptions::Kind::kImageClassifier)
    return BuildImageClassifier(config, place);
  Model model;
  model.config = config;
  const auto add = [&](int64_t layer, const auto& make) -> absl::Status {
    ParameterList parameters(model.config, layer, place);
    model.blocks.push_back(make(parameters));
    return parameters.status();
  };
  SHOAL_RETURN_IF_ERROR(add(0, [&](ParameterList& list) -> std::unique_ptr<Block> {
    if (config.observation_size > 0) return std::make_unique<ObservationBlock>(list, config);
    return std::make_unique<EmbeddingBlock>(list, config);
  }));
  std::shared_ptr<RotaryCache> rotary;
  if (config.family->stack.positions == StackOptions::Positions::kRotary) {
    rotary = std::make_shared<RotaryCache>(config.rope, config.head_dim, config.max_positions);
  }
  for (int64_t i = 0; i < config.num_layers; ++i) {
    SHOAL_RETURN_IF_ERROR(add(i, [&](ParameterList& list) {
      return std::make_unique<DecoderLayer>(list, config, i, rotary);
    }));
  }
  SHOAL_RETURN_IF_ERROR(add(0, [&](ParameterList& list) -> std::unique_ptr<Block> {
    if (config.head == HeadKind::kScore) return std::make_unique<ScoreHeadBlock>(list, config);
    return std::make_unique<HeadBlock>(list, config);
  }));
  if (config.lora) SHOAL_RETURN_IF_ERROR(CheckLoraTargets(model));
  return model;
}

}  // namespace shoal
