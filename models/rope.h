// Frequencies of rotary position embeddings, with Hugging Face's scaling types.
#pragma once

#include <cstdint>
#include <string>

#include "core/parameter.h"

namespace shoal {

struct RopeOptions {
  enum class Type {
    kDefault,  // theta^(-2i/d) (Su et al. 2021)
    kLinear,   // divided by factor (position interpolation, Chen et al. 2023)
    kLlama3,  // long wavelengths divided by factor, short ones kept, smooth between (Grattafiori et
              // al. 2024)
    kYarn,    // NTK by parts (Peng et al. 2023)
  };
  Type type = Type::kDefault;
  double theta = 10000;
  double factor = 1;
  // Of kLlama3 and kYarn.
  int64_t original_max_positions = 0;
  // Of kLlama3.
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  // Of kYarn.
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;
  double attention_factor = 1;  // cos and sin are multiplied by it
};

// (head_dim / 2) float64. Computed in float32, as Hugging Face does for every model, unless `dtype`
// is float64: weights are trained with these roundings.
Tensor InverseFrequencies(const RopeOptions& rope, int64_t head_dim, at::ScalarType dtype);

}  // namespace shoal
