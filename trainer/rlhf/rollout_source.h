// Who makes rollouts: from prompts (rollout_maker.h), or in an environment (environment_maker.h).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "trainer/rlhf/rollout.h"

namespace shoal {

class RolloutSource {
 public:
  explicit RolloutSource(const RolloutLayout& layout) : layout_(layout) {}
  virtual ~RolloutSource() = default;

  // Rollout `number` by the policy as it is now: a function of it, the number and the seed.
  // Collective.
  virtual absl::StatusOr<Rollout> Make(int64_t number) = 0;

  using Figures = std::vector<std::pair<std::string, double>>;
  // What the likeliest answers or actions are worth: "eval_reward" and more. Collective.
  virtual absl::StatusOr<Figures> Evaluate() = 0;

  // What is worth logging of the last rollout, in the order made.
  const Figures& figures() const { return figures_; }
  const RolloutLayout& layout() const { return layout_; }

 protected:
  const RolloutLayout layout_;
  Figures figures_;
};

}  // namespace shoal
