// Dropout (Srivastava et al. 2014) whose mask is a function of where an element is in the model and
// in the data, and of nothing else: any mesh, any split into micro-batches, a recomputed forward
// pass and a resumed run drop the same elements.
#pragma once

#include "core/parameter.h"
#include "kernels/simd/kernel_table.h"

namespace shoal {

// The mask of `rate` in [0, 1) in the stream `key`.
simd::DropoutMask MaskOf(double rate, uint64_t key);

// x: (..., C), R rows. Row r's elements are at (places_R[r], 0 .. C - 1) of the stream keys_R[r]
// (both int64, on any device). What stays is divided by 1 - rate. Differentiable in x.
Tensor Dropout(const Tensor& x, double rate, const Tensor& keys_R, const Tensor& places_R);

}  // namespace shoal
