#include "trainer/federated/server_rule.h"

#include <cmath>

#include <ATen/ATen.h>

namespace shoal {

void AdaptiveServerRule::Update(UpdateOperands& operands, const UpdateOptions& options) const {
  Tensor& m = operands.states[0];
  Tensor& v = operands.states[1];
  const Tensor gradient = operands.gradients.to(m.scalar_type()) * options.grad_scale;
  const Tensor square = gradient * gradient;
  if (options.step == 1 && !options_.bias_correction) v.fill_(options_.tau * options_.tau);
  m.mul_(options_.beta1).add_(gradient, 1 - options_.beta1);
  switch (options_.kind) {
    case Kind::kAdagrad:
      v.add_(square);
      break;
    case Kind::kAdam:
      v.mul_(options_.beta2).add_(square, 1 - options_.beta2);
      break;
    case Kind::kYogi:
      v.sub_(square * at::sign(v - square), 1 - options_.beta2);
      break;
  }
  double rate = options.learning_rate;
  Tensor root = v.sqrt();
  if (options_.bias_correction) {
    const double step = static_cast<double>(options.step);
    rate /= 1 - std::pow(options_.beta1, step);
    root.div_(std::sqrt(1 - std::pow(options_.beta2, step)));
  }
  operands.weights.addcdiv_(m, root.add_(options_.tau), -rate);
  if (operands.compute_copy.defined()) operands.compute_copy.copy_(operands.weights);
}

}  // namespace shoal
