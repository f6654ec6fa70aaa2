// Rollouts of a policy that acts in an environment, several copies of it side by side.
//
// A row of the rollout is a window of `context` steps of one copy: the policy sees the observations
// since the window's beginning, but none of an earlier episode. Windows follow one another, so that
// what it sees when it acts is what it sees in training.
#pragma once

#include <memory>
#include <vector>

#include "inference/rollout_engine.h"
#include "trainer/engine.h"
#include "trainer/rlhf/advantages.h"
#include "trainer/rlhf/environment.h"
#include "trainer/rlhf/rollout_source.h"

namespace shoal {

struct EnvironmentOptions {
  int64_t num_envs = 8;
  int64_t steps = 128;  // Of each, a rollout; a multiple of context
  int64_t context = 1;
  int64_t eval_episodes = 20;
  double temperature = 1.0;
  uint64_t seed = 0;
  GaeOptions gae;
  bool whiten = true;
};

class EnvironmentMaker final : public RolloutSource {
 public:
  // Borrowed; all outlive the maker.
  struct Parts {
    MakeEnvironment make;
    Engine& policy;
    BlockRunner& policy_runner;
    RolloutEngine& generation;
    Engine& critic;
    BlockRunner& critic_runner;
  };
  EnvironmentMaker(const EnvironmentOptions& options, const RolloutLayout& layout,
                   const Parts& parts)
      : RolloutSource(layout), options_(options), parts_(parts) {}

  absl::StatusOr<Rollout> Make(int64_t number) override;
  // Whole episodes, the likeliest action at each step. (The figure "reward" of a rollout is the
  // mean return of its episodes, those that its end cut included.)
  absl::StatusOr<Figures> Evaluate() override;

 private:
  struct Copy;
  struct Played;
  at::Tensor ActionLogprobs(std::span<const Copy> copies) const;
  Played Play(int64_t number);
  void AddAdvantages(Rollout& rollout, const Played& played);
  at::Tensor ValuesOf(const at::Tensor& observations_CF);

  EnvironmentOptions options_;
  Parts parts_;
};

}  // namespace shoal
