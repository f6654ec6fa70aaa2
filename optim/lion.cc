#include "optim/lion.h"

#include "core/status.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

template <class W, class G>
void LionLoop(UpdateOperands& operands, const Lion::Options& rule, double weight_decay,
              const UpdateOptions& options) {
  W* weights = operands.weights.mutable_data_ptr<W>();
  W* momentum = operands.states[0].mutable_data_ptr<W>();
  const G* gradients = operands.gradients.const_data_ptr<G>();
  const W rate = static_cast<W>(options.learning_rate), scale = static_cast<W>(options.grad_scale);
  const W keep = static_cast<W>(1 - options.learning_rate * weight_decay);
  const W beta1 = static_cast<W>(rule.beta1), beta2 = static_cast<W>(rule.beta2);
  ParallelFor(operands.weights.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const W gradient = static_cast<W>(gradients[i]) * scale;
      const W direction = beta1 * momentum[i] + (1 - beta1) * gradient;
      weights[i] = weights[i] * keep - rate * static_cast<W>((direction > 0) - (direction < 0));
      momentum[i] = beta2 * momentum[i] + (1 - beta2) * gradient;
    }
  });
}

}  // namespace

void Lion::Update(UpdateOperands& operands, const UpdateOptions& options) const {
  const double weight_decay = operands.WeightDecay(options_.weight_decay);
  const at::ScalarType gradient = operands.gradients.scalar_type();
  if (operands.weights.scalar_type() == at::kDouble) {
    LionLoop<double, double>(operands, options_, weight_decay, options);
  } else if (gradient == at::kBFloat16) {
    LionLoop<float, at::BFloat16>(operands, options_, weight_decay, options);
  } else {
    LionLoop<float, float>(operands, options_, weight_decay, options);
  }
  if (operands.compute_copy.defined()) operands.compute_copy.copy_(operands.weights);
}

}  // namespace shoal
