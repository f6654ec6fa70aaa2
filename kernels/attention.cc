#include "kernels/attention.h"

#include "kernels/reference.h"

namespace shoal {

Tensor CausalAttention(const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                       const AttentionOptions& options) {
  return reference::CausalAttention(q_BTNH, k_BTKH, v_BTKH, options);
}

Tensor CachedAttention(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH, const Tensor& lengths_B,
                       double scale) {
  return reference::CachedAttention(q_BTNH, k_BSKH, v_BSKH, lengths_B, scale);
}

}  // namespace shoal
