// Dynamic loss scaling (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2), by the
// rule of torch.amp.GradScaler with growth factor 2 and backoff factor 1/2: the loss is multiplied
// by a scale before the backward pass and gradients are divided by it after. A step whose gradients
// are not finite changes no weight and halves the scale; `growth_interval` finite steps in a row
// double it.
#pragma once

#include <cstdint>

namespace shoal {

struct LossScaling {
  double initial_scale = 65536;
  int64_t growth_interval = 2000;
  double min_scale = 1;  // No smaller one is tried

  bool operator==(const LossScaling&) const = default;
};

struct LossScale {
  double scale = 1;
  int64_t finite_steps = 0;  // In a row, since the scale changed
};

// The scale of the step after one with `scale`. `overflowed`: a gradient was not finite. Where the
// result is below options.min_scale, training cannot go on.
LossScale NextLossScale(const LossScaling& options, const LossScale& scale, bool overflowed);

}  // namespace shoal
