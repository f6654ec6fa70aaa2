#include "optim/adamw.h"

#include "kernels/optimizer_step.h"

namespace shoal {

void AdamW::Update(UpdateOperands& operands, const UpdateOptions& options) const {
  AdamWStep(operands.weights, operands.gradients, operands.states[0], operands.states[1],
            operands.compute_copy,
            {.learning_rate = options.learning_rate,
             .beta1 = options_.beta1,
             .beta2 = options_.beta2,
             .epsilon = options_.epsilon,
             .weight_decay = operands.WeightDecay(options_.weight_decay),
             .grad_scale = options.grad_scale,
             .step = options.step});
}

}  // namespace shoal
