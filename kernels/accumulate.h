// Sums in place between types.
#pragma once

#include "core/parameter.h"

namespace shoal {

// sum += x, each element rounded once to sum's type. Contiguous, of one shape; float32 and bfloat16
// in any combination without a copy of either, other types by ATen.
void Accumulate(const Tensor& x, const Tensor& sum);

}  // namespace shoal
