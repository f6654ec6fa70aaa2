#include "optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace shoal {

double LrSchedule::At(int64_t completed_steps) const {
  const double step = static_cast<double>(completed_steps);
  if (completed_steps < warmup_steps) return peak * step / static_cast<double>(warmup_steps);
  if (type == Type::kConstant) return peak;
  const int64_t decay_from =
      type == Type::kWsd ? std::max(warmup_steps, total_steps - decay_steps) : warmup_steps;
  const double length = static_cast<double>(std::max<int64_t>(1, total_steps - decay_from));
  const double progress = std::clamp((step - static_cast<double>(decay_from)) / length, 0.0, 1.0);
  const double remaining =
      type == Type::kCosine ? 0.5 * (1 + std::cos(std::numbers::pi * progress)) : 1 - progress;
  return peak * (min_ratio + (1 - min_ratio) * remaining);
}

int64_t StepsFromShare(double value, int64_t total_steps) {
  return static_cast<int64_t>(
      std::ceil(value < 1 ? value * static_cast<double>(total_steps) : value));
}

}  // namespace shoal
