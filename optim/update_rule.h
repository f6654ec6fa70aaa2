// An optimizer's arithmetic, apart from where its operands are sharded: AdamW in adamw.h, SGD in
// sgd.h, Lion in lion.h. Rules that look at whole weights: whole_rule.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/parameter.h"

namespace shoal {

struct UpdateOptions {
  double learning_rate = 0;
  double grad_scale = 1.0;  // Gradients are multiplied by this first (clipping)
  int64_t step = 1;         // 1 on the first update
};

// A run of elements that are updated alike; equally long flat tensors.
struct UpdateOperands {
  Tensor weights;  // Master dtype
  Tensor gradients;
  std::vector<Tensor> states;  // Master dtype, one a state name, zeros before the first step
  Tensor compute_copy;         // Undefined, or receives the rounded weights
  bool decay = true;           // The rule's weight decay applies
  std::optional<double> weight_decay;  // Instead of the rule's, whatever `decay` says

  double WeightDecay(double of_rule) const { return weight_decay.value_or(decay ? of_rule : 0.0); }
};

class UpdateRule {
 public:
  virtual ~UpdateRule() = default;
  // Names of the numbers kept per weight, as in checkpoints: {"adam_m", "adam_v"}.
  virtual std::span<const std::string> state_names() const = 0;
  // In place. Element i of the result depends on element i of the operands alone, which is what
  // lets ZeRO cut them anywhere.
  virtual void Update(UpdateOperands& operands, const UpdateOptions& options) const = 0;
};

}  // namespace shoal
