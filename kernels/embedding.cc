#include "kernels/embedding.h"

#include "kernels/reference.h"

namespace shoal {

Tensor Embedding(const Tensor& indices, const Parameter& weight) {
  return reference::Embedding(indices, WeightOf(weight));
}

}  // namespace shoal
