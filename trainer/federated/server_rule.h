// The server's adaptive steps (Reddi et al., "Adaptive Federated Optimization", ICLR 2021,
// algorithm 2) as ordinary update rules. With the pseudo-gradient g (the round's start less the
// mean of where the clients came out):
//
//   m <- beta1 m + (1 - beta1) g
//   adagrad: v <- v + g^2      yogi: v <- v - (1 - beta2) g^2 sign(v - g^2)
//   adam:    v <- beta2 v + (1 - beta2) g^2
//   weights <- weights - learning_rate m / (sqrt(v) + tau)
//
// v starts at tau^2 and there is no bias correction, as in the paper. One step of adam from g =
// -0.1 with learning_rate 0.1, tau 1e-3: 0.090503. With `bias_correction` both moments start at
// zero and are corrected as in Kingma and Ba 2015: 0.099010.
#pragma once

#include "optim/update_rule.h"

namespace shoal {

class AdaptiveServerRule final : public UpdateRule {
 public:
  enum class Kind { kAdam, kYogi, kAdagrad };
  struct Options {
    Kind kind = Kind::kAdam;
    double beta1 = 0.9;
    double beta2 = 0.99;
    double tau = 1e-3;
    bool bias_correction = false;  // Of kAdam
  };

  explicit AdaptiveServerRule(const Options& options) : options_(options) {}

  std::span<const std::string> state_names() const override { return names_; }
  void Update(UpdateOperands& operands, const UpdateOptions& options) const override;

 private:
  Options options_;
  std::vector<std::string> names_ = {"server_m", "server_v"};
};

}  // namespace shoal
