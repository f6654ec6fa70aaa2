#include "kernels/cross_entropy.h"

#include "kernels/reference.h"

namespace shoal {

Tensor LinearCrossEntropy(const Tensor& hidden_RC, const Parameter& weight, const Tensor& targets_R,
                          const CrossEntropyOptions& options) {
  return reference::LinearCrossEntropy(hidden_RC, WeightOf(weight), targets_R, options);
}

Tensor LinearLogprobs(const Tensor& hidden_RC, const Parameter& weight, const Tensor& targets_R,
                      const CrossEntropyOptions& options) {
  return reference::LinearLogprobs(hidden_RC, WeightOf(weight), targets_R, options);
}

}  // namespace shoal
