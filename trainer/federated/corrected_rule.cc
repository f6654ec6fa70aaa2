#include "trainer/federated/corrected_rule.h"

#include <ATen/ATen.h>

namespace shoal {

CorrectedRule::CorrectedRule(std::unique_ptr<UpdateRule> rule, const Options& options)
    : rule_(std::move(rule)), options_(options) {
  names_.assign(rule_->state_names().begin(), rule_->state_names().end());
  if (options_.mu != 0) names_.emplace_back(kStart);
  if (options_.correction) names_.emplace_back(kCorrection);
}

void CorrectedRule::Update(UpdateOperands& operands, const UpdateOptions& options) const {
  const size_t inner = rule_->state_names().size();
  Tensor& gradients = operands.gradients;
  if (options.grad_scale != 1.0) gradients.mul_(options.grad_scale);
  if (options_.mu != 0) {
    gradients.add_(operands.weights, options_.mu);
    gradients.sub_(operands.states[inner], options_.mu);
  }
  if (options_.correction) gradients.add_(operands.states.back());
  UpdateOperands rest = operands;
  rest.states.resize(inner);
  UpdateOptions unscaled = options;
  unscaled.grad_scale = 1.0;
  rule_->Update(rest, unscaled);
}

}  // namespace shoal
