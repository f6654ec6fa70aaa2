#include "kernels/rotary.h"

#include <ATen/ATen.h>

#include "kernels/reference.h"

namespace shoal {

RotaryTable MakeRotaryTable(const Tensor& inverse_frequency, int64_t num_positions, double attention_factor,
                            at::ScalarType dtype) {
  // Angles in float64: float32 loses whole radians' worth of digits at long contexts.
  Tensor positions = at::arange(num_positions, at::kDouble);
  Tensor angles = at::outer(positions, inverse_frequency.to(at::kDouble));
  const at::ScalarType type = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return {(angles.cos() * attention_factor).to(type), (angles.sin() * attention_factor).to(type)};
}

Tensor ApplyRotary(const Tensor& x_BTNH, const Tensor& positions_BT, const RotaryTable& table) {
  return reference::ApplyRotary(x_BTNH, positions_BT, table);
}

}  // namespace shoal
