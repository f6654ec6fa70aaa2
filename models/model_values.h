// The values of ModelConfig that a family's `config` section may set.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "models/model_config.h"

namespace shoal {

struct ModelValue {
  // Whose it is: of all decoders; of stack.mlp: experts, which must or may set it; of anyone.
  enum class Of { kDecoder, kAnyone, kExperts, kExpertsMay };

  std::string name;
  std::variant<int64_t ModelConfig::*, double ModelConfig::*, bool ModelConfig::*,
               Activation ModelConfig::*>
      member;
  double min = 0, max = 0;  // Of numbers
  Of of = Of::kDecoder;
};

const std::vector<ModelValue>& ModelValues();

}  // namespace shoal
