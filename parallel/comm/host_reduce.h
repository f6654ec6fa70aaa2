// Element-wise reduction over the ranks' buffers, in rank order.
//
// [Note: rank-ordered sums] Every element is (((r0 + r1) + r2) + ...), whoever computes it and
// however the data is cut into slices and chunks. So AllReduce, ReduceScatter + AllGather, and a
// serial loop over the ranks agree to the last bit, and ZeRO 0, 1, 2 and 3 with them. bfloat16 is
// widened to float32, summed in float32 and rounded to nearest even once, at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <c10/core/ScalarType.h>

#include "parallel/comm/communicator.h"

namespace shoal {

// The memory of a contiguous tensor on the host.
inline std::byte* Bytes(at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}
inline const std::byte* Bytes(const at::Tensor& tensor) {
  return static_cast<const std::byte*>(tensor.const_data_ptr());
}

// out[i] = sources[0][i] op sources[1][i] op ...  for i in [0, numel); at least one source. `out`
// may be one of the sources. dtype: float32, float64, bfloat16, float16 or int64 (sums wrap). kMax
// and kMin of a NaN: NaN.
void ReduceInOrder(ReduceOp op, at::ScalarType dtype, std::span<const std::byte* const> sources,
                   std::byte* out, int64_t numel);

}  // namespace shoal
