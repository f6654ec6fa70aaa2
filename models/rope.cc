#include "models/rope.h"
#include "core/dtype.h"

#include <cmath>

#include <ATen/ATen.h>

namespace shoal {
namespace {

Tensor Llama3(const RopeOptions& rope, const Tensor& frequency) {
  const double context = static_cast<double>(rope.original_max_positions);
  const double low = rope.low_frequency_factor, high = rope.high_frequency_factor;
  Tensor wavelength = 2 * M_PI / frequency;
  Tensor smooth = (context / wavelength - low) / (high - low);
  Tensor between = (1 - smooth) * frequency / rope.factor + smooth * frequency;
  Tensor scaled = at::where(wavelength > context / low, frequency / rope.factor, between);
  return at::where(wavelength < context / high, frequency, scaled);
}

// The dimension that turns `rotations` times over the original context.
double TurningDimension(const RopeOptions& rope, int64_t head_dim, double rotations) {
  return head_dim * std::log(rope.original_max_positions / (rotations * 2 * M_PI)) /
         (2 * std::log(rope.theta));
}

Tensor Yarn(const RopeOptions& rope, int64_t head_dim, const Tensor& frequency) {
  double low = TurningDimension(rope, head_dim, rope.beta_fast);
  double high = TurningDimension(rope, head_dim, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  Tensor ramp = ((at::arange(head_dim / 2, frequency.options()) - low) / (high - low)).clamp(0, 1);
  return frequency / rope.factor * ramp + frequency * (1 - ramp);
}

}  // namespace

Tensor InverseFrequencies(const RopeOptions& rope, int64_t head_dim, at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(SumDtype(dtype));
  Tensor exponent = at::arange(0, head_dim, 2, options) / static_cast<double>(head_dim);
  Tensor frequency = at::pow(at::Scalar(rope.theta), exponent).reciprocal();
  switch (rope.type) {
    case RopeOptions::Type::kDefault:
      break;
    case RopeOptions::Type::kLinear:
      frequency = frequency / rope.factor;
      break;
    case RopeOptions::Type::kLlama3:
      frequency = Llama3(rope, frequency);
      break;
    case RopeOptions::Type::kYarn:
      frequency = Yarn(rope, head_dim, frequency);
      break;
  }
  return frequency.to(at::kDouble);
}

}  // namespace shoal
