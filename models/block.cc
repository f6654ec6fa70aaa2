#include "models/block.h"

#include "models/shared_rows.h"
#include "parallel/tensor_parallel.h"

namespace shoal {

const Tensor& ForwardContext::tokens() const {
  return shared_rows ? shared_rows->tokens_1N : batch->tokens_BT;
}

const Tensor& ForwardContext::positions() const {
  return shared_rows ? shared_rows->positions_1N : batch->positions_BT;
}

Tensor ForwardContext::Enter(const Tensor& x) const {
  if (!tensor) return x;
  const int64_t channels = x.size(-1);
  const Tensor rows = tensor->Enter(x.reshape({-1, channels}));
  if (!tensor->sequence_parallel()) return rows.view(x.sizes());
  return rows.view({tokens().size(0), tokens().size(1), channels});
}

Tensor ForwardContext::Leave(const Tensor& x) const {
  if (!tensor) return x;
  const int64_t channels = x.size(-1);
  const Tensor rows = tensor->Leave(x.reshape({-1, channels}));
  return tensor->sequence_parallel() ? rows.unsqueeze(0) : rows.view(x.sizes());
}

}  // namespace shoal
