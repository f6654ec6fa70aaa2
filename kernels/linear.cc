#include "kernels/linear.h"

#include "kernels/reference.h"

namespace shoal {

Tensor Linear(const Tensor& x, const Parameter& weight, const Parameter* bias, LinearLayout layout) {
  return reference::Linear(x, WeightOf(weight), bias ? WeightOf(*bias) : Tensor(), layout);
}

}  // namespace shoal
