#include "trainer/loss_scale.h"

#include <limits>

namespace shoal {

LossScale NextLossScale(const LossScaling& options, const LossScale& scale, bool overflowed) {
  if (overflowed) return {.scale = scale.scale / 2, .finite_steps = 0};
  if (scale.finite_steps + 1 < options.growth_interval)
    return {.scale = scale.scale, .finite_steps = scale.finite_steps + 1};
  // Scales are float32 there, and remain finite.
  const bool grows = 2 * scale.scale <= std::numeric_limits<float>::max();
  return {.scale = (grows ? 2 : 1) * scale.scale, .finite_steps = 0};
}

}  // namespace shoal
