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

// Adds row i of x to row index_R[i] of sum, in the order of i, each rounded to sum's type. For
// devices other than the CPU. x: (R, W), sum: (N, W).
void AddRowsInOrder(const Tensor& x_RW, const Tensor& index_R, const Tensor& sum_NW);

// An index outside of [0, rows) stops the rank, naming `what`. index: contiguous. Other devices'
// indices are not looked at, which would wait for the device.
void CheckRows(const char* what, const Tensor& index, int64_t rows);

}  // namespace shoal
