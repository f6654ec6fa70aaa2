#include "models/blocks/activate.h"

#include <ATen/ATen.h>

#include "kernels/activation.h"

namespace shoal {

Tensor Activate(Activation activation, const Tensor& x) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGeluTanh:
      return Gelu(x, GeluKind::kTanh);
    case Activation::kGeluErf:
      return Gelu(x, GeluKind::kErf);
    case Activation::kRelu:
      return at::relu(x);
  }
  SHOAL_CHECK(false) << "activation " << static_cast<int>(activation);
  return x;
}

Tensor ActivateGated(Activation activation, const Tensor& gate, const Tensor& up) {
  return activation == Activation::kSilu ? SwiGlu(gate, up) : Activate(activation, gate) * up;
}

}  // namespace shoal
