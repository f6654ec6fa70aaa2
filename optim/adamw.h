// AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, Algorithm 2).
#pragma once

#include "optim/update_rule.h"

namespace shoal {

class AdamW final : public UpdateRule {
 public:
  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;
    double weight_decay = 0;
  };

  explicit AdamW(const Options& options) : options_(options) {}

  std::span<const std::string> state_names() const override { return names_; }
  void Update(UpdateOperands& operands, const UpdateOptions& options) const override;

 private:
  Options options_;
  std::vector<std::string> names_ = {"adam_m", "adam_v"};
};

}  // namespace shoal
