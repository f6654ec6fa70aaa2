#include "kernels/activation.h"

#include "kernels/reference.h"

namespace shoal {

Tensor SwiGlu(const Tensor& gate, const Tensor& up) { return reference::SwiGlu(gate, up); }

Tensor SwiGluPacked(const Tensor& gate_up) {
  const int64_t half = gate_up.size(-1) / 2;
  return reference::SwiGlu(gate_up.narrow(-1, 0, half), gate_up.narrow(-1, half, half));
}

Tensor Gelu(const Tensor& x, GeluKind kind) { return reference::Gelu(x, kind); }

}  // namespace shoal
