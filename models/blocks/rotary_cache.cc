#include "models/blocks/rotary_cache.h"
#include "core/dtype.h"
#include "core/tensor_memory.h"

#include <algorithm>
#include <bit>

#include <ATen/ATen.h>

namespace shoal {

RotaryTable RotaryCache::For(const Tensor& x, const Tensor& positions_BT) {
  int64_t needed = max_positions_;
  if (positions_BT.numel() > 0) {
    const Tensor positions = positions_BT.contiguous();
    const int64_t* values = positions.const_data_ptr<int64_t>();
    needed = *std::max_element(values, values + positions.numel()) + 1;
  }
  const at::ScalarType dtype = SumDtype(x.scalar_type());
  const std::lock_guard lock(mutex_);
  RotaryTable& table = tables_[{dtype, x.is_cpu() ? -1 : x.get_device()}];
  if (!table.cos_PH.defined() || table.cos_PH.size(0) < needed) {
    const auto rows = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(needed)));
    const at::NoGradGuard no_grad;
    const TensorMemoryScope memory(nullptr);  // It outlives the pass
    table = MakeRotaryTable(InverseFrequencies(rope_, head_dim_, dtype), rows,
                            rope_.attention_factor, dtype);
    table.cos_PH = table.cos_PH.to(x.device());
    table.sin_PH = table.sin_PH.to(x.device());
  }
  return table;
}

}  // namespace shoal
