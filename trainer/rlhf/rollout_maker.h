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
#include "trainer/rlhf/rollout_source.h"

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

class RolloutMaker final : public RolloutSource {
 public:
  // Who answers and who judges. Borrowed; all outlive the maker.
  struct Parts {
    Engine& policy;
    BlockRunner& policy_runner;
    RolloutEngine& generation;
    const PromptSet& prompts;
    const Tokenizer& tokenizer;
    RewardSum& rewards;
    const PromptSet* held_out = nullptr;  // For Evaluate
    // What gives reference log-probabilities: the policy's runner with adapters off, or another
    // model's. Null: there is no reference.
    Engine* reference = nullptr;
    BlockRunner* reference_runner = nullptr;
    bool reference_without_adapters = false;
    Engine* critic = nullptr;  // Of kGae
    BlockRunner* critic_runner = nullptr;
  };
  RolloutMaker(const RolloutOptions& options, const RolloutLayout& layout, const Parts& parts)
      : RolloutSource(layout), options_(options), parts_(parts) {}

  absl::StatusOr<Rollout> Make(int64_t number) override;
  // Each prompt of parts.held_out answered once by the likeliest tokens: figures eval_reward,
  // eval_reward_<kind>, eval_answer_tokens; where the reference is a model of its own,
  // eval_win_rate, the share of the prompts that the policy answers better than it does, a draw
  // counting half.
  absl::StatusOr<Figures> Evaluate() override;

 private:
  struct Answered {
    Rollout rollout;
    RewardSum::Scores scores;
  };
  struct Questions {
    const PromptSet& prompts;
    int64_t number;  // Of the rollout
    std::vector<int64_t> asked;
    double temperature;
  };
  absl::StatusOr<Answered> AnswerAndScore(RolloutEngine& generation, const Questions& questions);
  absl::Status ScoreReference(const Questions& questions);
  void AddLogprobs(Rollout& rollout);
  void AddAdvantages(Rollout& rollout);
  at::Tensor TokenRewards(const Rollout& rollout) const;

  RolloutOptions options_;
  Parts parts_;
  at::Tensor reference_rewards_;  // Of the held-out prompts; undefined: not asked yet
};

}  // namespace shoal
