// Rows of an activation by index, some of them several times.
#pragma once

#include "core/parameter.h"

namespace shoal {

// x: (N, ...), each row dense; index_R: int64 in [0, N). Returns (R, ...). Differentiable in x: a
// row's gradient is the sum over the places that took it, in their order, in float32 (float64 for
// float64), rounded once. The same bits on any number of threads.
Tensor TakeRows(const Tensor& x, const Tensor& index_R);

// x: (N, W), each row dense; index: (...) contiguous, in [0, N). Returns (..., W). Not
// differentiable.
Tensor CopyRows(const Tensor& x_NW, const Tensor& index);

// An index outside of [0, rows) stops the rank, naming `what`. index: contiguous.
void CheckRows(const char* what, const Tensor& index, int64_t rows);

}  // namespace shoal
