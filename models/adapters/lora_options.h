// Low-rank adapters (Hu et al. 2021): which matrices of a model have one, and how large it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shoal {

struct LoraOptions {
  int64_t rank = 8;
  double alpha = 16;  // The adapter's product is scaled by alpha / rank
  // As peft's target_modules: a module has an adapter if its name ends in one of these ("q_proj",
  // "mlp.down_proj"); kAllLinear: every matrix of the layers.
  std::vector<std::string> targets;
  static constexpr char kAllLinear[] = "all-linear";

  double scale() const { return alpha / static_cast<double>(rank); }
};

}  // namespace shoal
