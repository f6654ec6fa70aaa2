// Products of a few rows with a matrix, as in decoding: oneDNN would first copy the matrix into its
// own order, which costs more than the product, and its sums depend on the number of rows. Reached
// through MatMul (matmul.h), whose terms these are.
#pragma once

#include "kernels/matmul.h"

namespace shoal {

// c = a b (+ bias) of up to kMaxRowsOfEqualBits rows in float32 or bfloat16, c in their type or,
// where b is stored (N, K), in float32. b is read once, where it lies. False, and nothing done, for
// any other product.
bool FewRowsProduct(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN,
                    const MatMulOptions& options);

}  // namespace shoal
