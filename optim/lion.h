// Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, Algorithm 2).
#pragma once

#include "optim/update_rule.h"

namespace shoal {

// w -= lr (sign(b1 m + (1 - b1) g) + wd w);  m = b2 m + (1 - b2) g
class Lion final : public UpdateRule {
 public:
  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.99;
    double weight_decay = 0;
  };

  explicit Lion(const Options& options) : options_(options) {}

  std::span<const std::string> state_names() const override { return names_; }
  void Update(UpdateOperands& operands, const UpdateOptions& options) const override;

 private:
  Options options_;
  std::vector<std::string> names_ = {"lion_m"};
};

}  // namespace shoal
