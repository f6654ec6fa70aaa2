#include "models/block.h"

#include "parallel/tensor_parallel.h"

namespace shoal {

Tensor ForwardContext::Enter(const Tensor& x) const {
  if (!tensor) return x;
  const int64_t channels = x.size(-1);
  const Tensor rows = tensor->Enter(x.reshape({-1, channels}));
  if (!tensor->sequence_parallel()) return rows.view(x.sizes());
  const Tensor& tokens_BT = batch->tokens_BT;
  return rows.view({tokens_BT.size(0), tokens_BT.size(1), channels});
}

Tensor ForwardContext::Leave(const Tensor& x) const {
  if (!tensor) return x;
  const int64_t channels = x.size(-1);
  const Tensor rows = tensor->Leave(x.reshape({-1, channels}));
  return tensor->sequence_parallel() ? rows.unsqueeze(0) : rows.view(x.sizes());
}

}  // namespace shoal
