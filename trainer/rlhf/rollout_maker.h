// From weights to a rollout: answers, rewards, log-probabilities, advantages.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "inference/rollout_engine.h"
#include "trainer/engine.h"
#include "trainer/rlhf/advantages.h"
#include "trainer/rlhf/kl_estimators.h"
#include "trainer/rlhf/policy_losses.h"
#include "trainer/rlhf/prompt_set.h"
#include "trainer/rlhf/reward_sum.h"
#include "trainer/rlhf/rollout.h"

namespace shoal {

enum class AdvantageKind { kGroup, kLeaveOneOut, kGae };

struct RolloutOptions {
  int64_t prompts = 64;
  int64_t group_size = 8;
  int64_t max_new_tokens = 64;
  double temperature = 1.0;
  double missing_eos_penalty = 0;
  uint64_t seed = 0;
  std::vector<int64_t> eos_token_ids;

  AdvantageKind advantage = AdvantageKind::kGroup;
  GroupOptions group;
  GaeOptions gae;
  bool whiten = false;

  double kl_in_reward = 0;  // Coefficient of a per-token penalty
  KlEstimator kl_estimator = KlEstimator::kK1;
  // Several steps a rollout: ratios are to the policy before the first of them.
  bool old_logprobs = false;
};

class RolloutMaker {
 public:
  // Who answers and who judges. Borrowed; all outlive the maker.
  struct Parts {
    Engine& policy;
    BlockRunner& policy_runner;
    RolloutEngine& generation;
    const PromptSet& prompts;
    const Tokenizer& tokenizer;
    RewardSum& rewards;
    // What gives reference log-probabilities: the policy's runner with adapters off, or another
    // model's. Null: there is no reference.
    Engine* reference = nullptr;
    BlockRunner* reference_runner = nullptr;
    bool reference_without_adapters = false;
    Engine* critic = nullptr;  // Of kGae
    BlockRunner* critic_runner = nullptr;
  };
  RolloutMaker(const RolloutOptions& options, const RolloutLayout& layout, const Parts& parts)
      : options_(options), layout_(layout), parts_(parts) {}

  // Rollout `number` by the policy as it is now: a function of it, the number and the seed.
  // Collective.
  absl::StatusOr<Rollout> Make(int64_t number);

  // What is worth logging of the last one, in the order made.
  using Figures = std::vector<std::pair<std::string, double>>;
  const Figures& figures() const { return figures_; }

  // Each prompt of `held_out` answered once by the likeliest tokens: figures eval_reward,
  // eval_reward_<kind>, eval_answer_tokens. Collective.
  absl::StatusOr<Figures> Evaluate(const PromptSet& held_out);

  const RolloutLayout& layout() const { return layout_; }

 private:
  struct Answered {
    Rollout rollout;
    RewardSum::Scores scores;
  };
  absl::StatusOr<Answered> AnswerAndScore(const PromptSet& prompts, int64_t number,
                                          std::span<const int64_t> asked, double temperature);
  void AddLogprobs(Rollout& rollout);
  void AddAdvantages(Rollout& rollout);
  at::Tensor TokenRewards(const Rollout& rollout) const;

  RolloutOptions options_;
  RolloutLayout layout_;
  Parts parts_;
  Figures figures_;
};

}  // namespace shoal
