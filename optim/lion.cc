#include "optim/lion.h"

#include <ATen/ATen.h>

#include "core/status.h"
#include "kernels/device_kernels.h"
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

// On a device: by its kernel, or where it has none (float64) by plain operators.
void LionOnDevice(UpdateOperands& operands, const Lion::Options& rule, double weight_decay,
                  const UpdateOptions& options) {
  Tensor &weights = operands.weights, &momentum = operands.states[0], &copy = operands.compute_copy;
  const double keep = 1 - options.learning_rate * weight_decay;
  const DeviceKernels* device = DeviceKernelsFor(weights);
  if (device && DeviceKernelsFor(operands.gradients) &&
      (!copy.defined() || DeviceKernelsFor(copy))) {
    DeviceStep step{.n = weights.numel(),
                    .weights = weights.mutable_data_ptr<float>(),
                    .gradients = operands.gradients.const_data_ptr(),
                    .moment1 = momentum.mutable_data_ptr<float>()};
    if (copy.defined()) {
      step.copy = copy.mutable_data_ptr();
      step.copy_type = ElementTypeOf(copy.scalar_type());
    }
    device->lion(CallOn(operands.gradients), step,
                 {.keep = static_cast<float>(keep),
                  .learning_rate = static_cast<float>(options.learning_rate),
                  .beta1 = static_cast<float>(rule.beta1),
                  .beta2 = static_cast<float>(rule.beta2),
                  .grad_scale = static_cast<float>(options.grad_scale)});
    return;
  }
  const Tensor gradient = operands.gradients.to(weights.scalar_type()) * options.grad_scale;
  const Tensor direction = momentum * rule.beta1 + gradient * (1 - rule.beta1);
  weights.mul_(keep).sub_(direction.sign(), options.learning_rate);
  momentum.mul_(rule.beta2).add_(gradient, 1 - rule.beta2);
  if (copy.defined()) copy.copy_(weights);
}

}  // namespace

void Lion::Update(UpdateOperands& operands, const UpdateOptions& options) const {
  const double weight_decay = operands.WeightDecay(options_.weight_decay);
  if (DeviceKernelsFor(operands.gradients) || !operands.weights.device().is_cpu())
    return LionOnDevice(operands, options_, weight_decay, options);
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
