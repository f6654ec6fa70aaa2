#include "kernels/optimizer_step.h"

#include "kernels/reference.h"

namespace shoal {

void AdamWStep(Tensor& weights, const Tensor& grads, Tensor& moment1, Tensor& moment2, Tensor& compute_copy,
               const AdamWOptions& options) {
  reference::AdamWStep(weights, grads, moment1, moment2, compute_copy, options);
}

void SgdStep(Tensor& weights, const Tensor& grads, Tensor& momentum, Tensor& compute_copy,
             const SgdOptions& options) {
  reference::SgdStep(weights, grads, momentum, compute_copy, options);
}

double SumOfSquares(const Tensor& values) {
  constexpr int64_t kBlock = 4096;
  Tensor flat = values.reshape({-1});
  double total = 0;
  for (int64_t i = 0; i < flat.numel(); i += kBlock) {
    total += flat.narrow(0, i, std::min(kBlock, flat.numel() - i)).to(at::kDouble).square().sum().item<double>();
  }
  return total;
}

}  // namespace shoal
