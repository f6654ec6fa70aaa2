// An update rule whose gradients are corrected first, as a client of FedProx or SCAFFOLD does:
//
//   gradient <- scale * gradient + mu (weights - start) + correction
//
// FedProx (Li et al., MLSys 2020): `start` is where the round began, correction zero. SCAFFOLD
// (Karimireddy et al., ICML 2020): mu zero, correction = c - c_i. Both are states of the rule that
// its user writes before training (ShardedOptimizer::State), so nothing else of a step changes.
#pragma once

#include <memory>

#include "optim/update_rule.h"

namespace shoal {

class CorrectedRule final : public UpdateRule {
 public:
  static constexpr char kStart[] = "start";
  static constexpr char kCorrection[] = "correction";

  struct Options {
    double mu = 0;            // 0: there is no state kStart
    bool correction = false;  // There is a state kCorrection
  };
  CorrectedRule(std::unique_ptr<UpdateRule> rule, const Options& options);

  // The inner rule's, then kStart and kCorrection where they are used.
  std::span<const std::string> state_names() const override { return names_; }
  void Update(UpdateOperands& operands, const UpdateOptions& options) const override;

 private:
  std::unique_ptr<UpdateRule> rule_;
  Options options_;
  std::vector<std::string> names_;
};

}  // namespace shoal
