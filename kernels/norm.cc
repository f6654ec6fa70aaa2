#include "kernels/norm.h"

#include "kernels/reference.h"

namespace shoal {

Tensor RmsNorm(const Tensor& x, const Parameter& weight, double epsilon) {
  return reference::RmsNorm(x, WeightOf(weight), epsilon);
}

Tensor LayerNorm(const Tensor& x, const Parameter& weight, const Parameter& bias, double epsilon) {
  return reference::LayerNorm(x, WeightOf(weight), WeightOf(bias), epsilon);
}

std::pair<Tensor, Tensor> AddRmsNorm(const Tensor& x, const Tensor& residual, const Parameter& weight,
                                     double epsilon) {
  Tensor sum = x + residual;
  return {reference::RmsNorm(sum, WeightOf(weight), epsilon), sum};
}

}  // namespace shoal
