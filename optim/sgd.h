// Stochastic gradient descent with momentum, as torch.optim.SGD defines it (Sutskever et al., ICML
// 2013, with the learning rate outside the momentum).
#pragma once

#include "optim/update_rule.h"

namespace shoal {

class Sgd final : public UpdateRule {
 public:
  struct Options {
    double momentum = 0;
    double weight_decay = 0;
    bool nesterov = false;
  };

  explicit Sgd(const Options& options);

  std::span<const std::string> state_names() const override { return names_; }
  void Update(UpdateOperands& operands, const UpdateOptions& options) const override;

 private:
  Options options_;
  std::vector<std::string> names_;
};

}  // namespace shoal
