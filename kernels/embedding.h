// Rows of a table by index.
#pragma once

#include "core/parameter.h"

namespace shoal {

// indices: (...) int64 in [0, V); weight: (V, C). Returns (..., C). Backward adds each row's
// gradient to weight.grad, in the order of the indices (deterministic).
Tensor Embedding(const Tensor& indices, const Parameter& weight);

}  // namespace shoal
