// The activations of a configuration.
#pragma once

#include "core/parameter.h"
#include "models/model_config.h"

namespace shoal {

Tensor Activate(Activation activation, const Tensor& x);
// Activate(gate) * up, in one pass where there is a kernel.
Tensor ActivateGated(Activation activation, const Tensor& gate, const Tensor& up);

}  // namespace shoal
