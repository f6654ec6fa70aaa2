// When the products that give weights their gradients are done: in the backward pass, or later, as
// zero-bubble pipelines want it (Qi et al. 2023).
#pragma once

#include <functional>
#include <vector>

namespace shoal {

// Products put off, in the order of the backward pass. They hold what they multiply.
using WeightGradientWork = std::vector<std::function<void()>>;

// While it lives, backward passes on this thread add linear layers' weight products to `later`
// instead of doing them. What else has gradients (norms, biases, embeddings, the head) is done in
// the pass.
class DeferWeightGradients {
 public:
  explicit DeferWeightGradients(WeightGradientWork& later);
  ~DeferWeightGradients();
  DeferWeightGradients(const DeferWeightGradients&) = delete;
  DeferWeightGradients& operator=(const DeferWeightGradients&) = delete;

 private:
  WeightGradientWork* before_;
};

// Does `product` now, or puts it off.
void DoWeightGradient(std::function<void()> product);

}  // namespace shoal
