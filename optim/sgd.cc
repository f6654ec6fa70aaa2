#include "optim/sgd.h"

#include "kernels/optimizer_step.h"

namespace shoal {

Sgd::Sgd(const Options& options) : options_(options) {
  if (options_.momentum != 0) names_.push_back("momentum");
}

void Sgd::Update(UpdateOperands& operands, const UpdateOptions& options) const {
  Tensor no_momentum;
  SgdStep(operands.weights, operands.gradients, names_.empty() ? no_momentum : operands.states[0],
          operands.compute_copy,
          {.learning_rate = options.learning_rate,
           .momentum = options_.momentum,
           .weight_decay = operands.WeightDecay(options_.weight_decay),
           .nesterov = options_.nesterov,
           .grad_scale = options.grad_scale,
           .step = options.step});
}

}  // namespace shoal
