// Learning rate as a pure function of the step.
#pragma once

#include <cstdint>

namespace shoal {

struct LrSchedule {
  enum class Type { kConstant, kLinear, kCosine, kWsd };
  Type type = Type::kLinear;
  double peak = 0;
  double min_ratio = 0;  // Of peak, at the last step
  int64_t total_steps = 1;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;  // Of kWsd

  // Of the update that follows `completed_steps` others: rises linearly through peak * s /
  // warmup_steps (s = completed_steps, as transformers' schedulers count), then
  //   constant: peak
  //   linear:   from peak down to min_ratio * peak, reached after total_steps
  //   cosine:   the same along half a cosine (Loshchilov and Hutter 2017, one cycle)
  //   wsd:      peak until total_steps - decay_steps, then linear as above (Hu et al. 2024,
  //   MiniCPM)
  double At(int64_t completed_steps) const;
};

// Steps from a recipe's number: below 1 a share of total_steps (rounded up), else the steps
// themselves.
int64_t StepsFromShare(double value, int64_t total_steps);

}  // namespace shoal
