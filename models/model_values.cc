#include "models/model_values.h"

#include <algorithm>

#include "models/family.h"

namespace shoal {

const std::vector<ModelValue>& ModelValues() {
  using enum ModelValue::Of;
  static const auto& values = *new std::vector<ModelValue>{
      {"vocab_size", &ModelConfig::vocab_size, 1, 1 << 30},
      {"hidden_size", &ModelConfig::hidden_size, 1, 1 << 20},
      {"intermediate_size", &ModelConfig::intermediate_size, 1, 1 << 24},
      {"num_layers", &ModelConfig::num_layers, 0, 10000},
      {"num_heads", &ModelConfig::num_heads, 1, 1 << 16},
      {"num_key_value_heads", &ModelConfig::num_key_value_heads, 1, 1 << 16},
      {"head_dim", &ModelConfig::head_dim, 1, 1 << 14},
      {"max_positions", &ModelConfig::max_positions, 1, 1 << 30},
      {"activation", &ModelConfig::activation},
      {"norm_epsilon", &ModelConfig::norm_epsilon, 0, 1},
      {"initializer_range", &ModelConfig::initializer_range, 0, 10, kAnyone},
      {"observation_size", &ModelConfig::observation_size, 1, 1 << 20, kAnyone},
      {"image_size", &ModelConfig::image_size, 1, 4096, kAnyone},
      {"image_channels", &ModelConfig::image_channels, 1, 1024, kAnyone},
      {"max_pixel", &ModelConfig::max_pixel, 1, 255, kAnyone},
      {"num_experts", &ModelConfig::num_experts, 1, 1 << 16, kExperts},
      {"experts_per_token", &ModelConfig::experts_per_token, 1, 1 << 16, kExperts},
      {"router_balance_loss", &ModelConfig::router_balance_loss, 0, 1e6, kExperts},
      {"expert_intermediate_size", &ModelConfig::expert_intermediate_size, 1, 1 << 24, kExpertsMay},
      {"num_shared_experts", &ModelConfig::num_shared_experts, 1, 1 << 10, kExpertsMay},
      {"num_dense_layers", &ModelConfig::num_dense_layers, 0, 10000, kExpertsMay},
      {"num_expert_groups", &ModelConfig::num_expert_groups, 1, 1 << 16, kExpertsMay},
      {"expert_groups_per_token", &ModelConfig::expert_groups_per_token, 1, 1 << 16, kExpertsMay},
      {"normalize_expert_weights", &ModelConfig::normalize_expert_weights, 0, 0, kExpertsMay},
      {"expert_weight_scale", &ModelConfig::expert_weight_scale, 0, 1e6, kExpertsMay},
      {"attention_bias", &ModelConfig::attention_bias, 0, 0, kAnyone},
      {"mlp_bias", &ModelConfig::mlp_bias, 0, 0, kAnyone},
      {"tie_word_embeddings", &ModelConfig::tie_word_embeddings, 0, 0, kAnyone},
      {"scale_attention", &ModelConfig::scale_attention, 0, 0, kAnyone},
      {"scale_attention_by_layer", &ModelConfig::scale_attention_by_layer, 0, 0, kAnyone},
  };
  return values;
}

const std::vector<std::string>& ModelValueNames() {
  static const auto& names = *new std::vector<std::string>([] {
    std::vector<std::string> list;
    for (const ModelValue& value : ModelValues()) list.push_back(value.name);
    return list;
  }());
  return names;
}

bool IsRequiredModelValue(const std::string& name) {
  return std::any_of(ModelValues().begin(), ModelValues().end(), [&](const ModelValue& value) {
    return value.name == name && value.of == ModelValue::Of::kDecoder;
  });
}

bool IsExpertValue(const std::string& name, bool required) {
  return std::any_of(ModelValues().begin(), ModelValues().end(), [&](const ModelValue& value) {
    return value.name == name && (value.of == ModelValue::Of::kExperts ||
                                  (!required && value.of == ModelValue::Of::kExpertsMay));
  });
}

}  // namespace shoal
