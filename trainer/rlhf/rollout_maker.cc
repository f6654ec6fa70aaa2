// Legend: N answers, A the longest one's tokens.
#include "trainer/rlhf/rollout_maker.h"

#include <chrono>

#include <ATen/ATen.h>

namespace shoal {

using at::Tensor;

namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double MeanAt(const Tensor& mask_NA, const Tensor& values_NA) {
  return values_NA.masked_select(mask_NA).mean().item<double>();
}

}  // namespace

absl::StatusOr<RolloutMaker::Answered> RolloutMaker::AnswerAndScore(RolloutEngine& generation,
                                                                    const Questions& questions) {
  const auto& [prompts, number, asked, temperature] = questions;
  std::vector<GenerationRequest> requests;
  for (size_t n = 0; n < asked.size(); ++n) {
    requests.push_back({.prompt = prompts[asked[n]].tokens,
                        .max_new_tokens = options_.max_new_tokens,
                        .sampling = {.temperature = temperature,
                                     .seed = options_.seed ^ StreamId("rollout answers")},
                        .stream = static_cast<uint64_t>(number) * asked.size() + n,
                        .eos_token_ids = options_.eos_token_ids,
                        .want_logprobs = true});
  }
  SHOAL_RETURN_IF_ERROR(generation.Refresh());
  absl::StatusOr<std::vector<Generation>> generations = generation.GenerateOverRanks(requests);
  generation.Release();
  SHOAL_RETURN_IF_ERROR(generations.status());
  Answered answered{.rollout = CollectRollout(number, asked, requests, *std::move(generations)),
                    .scores = {}};

  std::vector<Answer> answers;
  for (const Rollout::Row& row : answered.rollout.rows) {
    const std::vector<int32_t> ids(row.answer().begin(), row.answer().end());
    answers.push_back({.prompt = &prompts[row.prompt],
                       .text = parts_.tokenizer.Decode(ids),
                       .tokens = row.answer(),
                       .finish_reason = row.finish_reason});
  }
  SHOAL_ASSIGN_OR_RETURN(answered.scores,
                         parts_.rewards.Score(answers, parts_.policy.mesh().control()));
  for (size_t n = 0; n < answers.size(); ++n) {
    if (answers[n].finish_reason != FinishReason::kEos)
      answered.scores.rewards[n] -= options_.missing_eos_penalty;
  }
  answered.rollout.rewards_N = at::tensor(answered.scores.rewards, at::kDouble);
  return answered;
}

absl::StatusOr<Rollout> RolloutMaker::Make(int64_t number) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<int64_t> asked;
  for (int64_t i = 0; i < options_.prompts; ++i) {
    const int64_t prompt = parts_.prompts.At(number * options_.prompts + i);
    asked.insert(asked.end(), options_.group_size, prompt);
  }
  SHOAL_ASSIGN_OR_RETURN(
      Answered answered,
      AnswerAndScore(parts_.generation, {parts_.prompts, number, asked, options_.temperature}));
  Rollout& rollout = answered.rollout;
  const double answered_seconds = SecondsSince(start);

  figures_ = {{"reward", rollout.rewards_N.mean().item<double>()},
              {"reward_std", rollout.rewards_N.std().item<double>()}};
  figures_.insert(figures_.end(), answered.scores.means.begin(), answered.scores.means.end());
  double ended = 0;
  for (const Rollout::Row& row : rollout.rows) ended += row.finish_reason == FinishReason::kEos;
  const double tokens = rollout.mask_NA.sum().item<double>();
  const double N = static_cast<double>(rollout.size());
  figures_.emplace_back("answer_tokens", tokens / N);
  figures_.emplace_back("eos_rate", ended / N);
  if (options_.advantage != AdvantageKind::kGae) {
    figures_.emplace_back("equal_groups",
                          GroupsOfEqualRewards(rollout.rewards_N, options_.group_size)
                              .to(at::kDouble)
                              .mean()
                              .item<double>());
  }
  AddLogprobs(rollout);
  AddAdvantages(rollout);
  figures_.emplace_back("rollout_seconds", SecondsSince(start));
  figures_.emplace_back("rollout_tokens_per_second", tokens / answered_seconds);
  return std::move(rollout);
}

void RolloutMaker::AddLogprobs(Rollout& rollout) {
  const auto pass = [&](BlockRunner& runner, Engine& engine, BlockRunner::HeadOptions options) {
    return HeadOfRollout(runner, engine.mesh(), rollout, layout_, options);
  };
  auto& of_tokens = rollout.of_tokens;
  const bool kl_in_reward = options_.kl_in_reward > 0;
  if (options_.old_logprobs || kl_in_reward) {
    of_tokens[kOldLogprobs] =
        pass(parts_.policy_runner, parts_.policy,
             {.mode = HeadMode::kLogprobs, .temperature = options_.temperature});
  }
  if (options_.temperature != 1.0 || options_.old_logprobs || kl_in_reward) {
    // Rollouts tell log-probabilities at temperature 1.
    const Tensor training_NA =
        options_.temperature == 1.0
            ? of_tokens.at(kOldLogprobs)
            : pass(parts_.policy_runner, parts_.policy, {.mode = HeadMode::kLogprobs});
    const Tensor error_NA = at::expm1((training_NA - of_tokens.at(kRolloutLogprobs)).abs());
    figures_.emplace_back("logprob_error", MeanAt(rollout.mask_NA, error_NA));
    of_tokens.erase(kRolloutLogprobs);
  }
  if (parts_.reference_runner) {
    of_tokens[kReferenceLogprobs] = pass(*parts_.reference_runner, *parts_.reference,
                                         {.mode = HeadMode::kLogprobs,
                                          .temperature = options_.temperature,
                                          .adapters = !parts_.reference_without_adapters});
  }
  if (parts_.critic_runner)
    of_tokens[kOldValues] =
        pass(*parts_.critic_runner, *parts_.critic, {.mode = HeadMode::kScores});
}

// The answer's reward at its last token, less the penalty at each.
Tensor RolloutMaker::TokenRewards(const Rollout& rollout) const {
  Tensor rewards_NA = at::zeros(rollout.mask_NA.sizes(), at::kDouble);
  if (options_.kl_in_reward > 0) {
    rewards_NA = -options_.kl_in_reward * KlEstimate(options_.kl_estimator,
                                                     rollout.of_tokens.at(kOldLogprobs),
                                                     rollout.of_tokens.at(kReferenceLogprobs));
    rewards_NA = at::where(rollout.mask_NA, rewards_NA, at::zeros_like(rewards_NA));
  }
  for (int64_t n = 0; n < rollout.size(); ++n)
    rewards_NA[n][rollout.rows[n].answer_length() - 1] += rollout.rewards_N[n];
  return rewards_NA;
}

void RolloutMaker::AddAdvantages(Rollout& rollout) {
  auto& of_tokens = rollout.of_tokens;
  const Tensor zeros_NA = at::zeros(rollout.mask_NA.sizes(), at::kDouble);
  Tensor advantages_NA;
  if (options_.advantage == AdvantageKind::kGae) {
    const GaeResult gae = GeneralizedAdvantages(TokenRewards(rollout), of_tokens.at(kOldValues),
                                                rollout.mask_NA, {}, options_.gae);
    advantages_NA = gae.advantages_BT;
    of_tokens[kReturns] = gae.returns_BT;
    const Tensor returns = gae.returns_BT.masked_select(rollout.mask_NA),
                 errors = advantages_NA.masked_select(rollout.mask_NA);
    figures_.emplace_back("explained_variance",
                          1 - (errors.var() / returns.var().clamp_min(1e-12)).item<double>());
  } else {
    const Tensor advantages_N = options_.advantage == AdvantageKind::kGroup
                                    ? GroupAdvantages(rollout.rewards_N, options_.group)
                                    : LeaveOneOutAdvantages(rollout.rewards_N, options_.group_size);
    advantages_NA = at::where(rollout.mask_NA, advantages_N.unsqueeze(1), zeros_NA);
  }
  if (options_.whiten) advantages_NA = Whiten(advantages_NA, rollout.mask_NA);
  of_tokens[kAdvantages] = advantages_NA;
}

absl::Status RolloutMaker::ScoreReference(const Questions& questions) {
  SHOAL_ASSIGN_OR_RETURN(const auto generation,
                         RolloutEngine::Create({.model = parts_.reference->model(),
                                                .parameters = parts_.reference->parameters(),
                                                .mesh = parts_.reference->mesh()}));
  SHOAL_ASSIGN_OR_RETURN(const Answered answered, AnswerAndScore(*generation, questions));
  reference_rewards_ = answered.rollout.rewards_N;
  return absl::OkStatus();
}

absl::StatusOr<RolloutMaker::Figures> RolloutMaker::Evaluate() {
  const PromptSet& held_out = *parts_.held_out;
  Questions questions{held_out, /*number=*/0, {}, /*temperature=*/0};
  for (int64_t i = 0; i < held_out.size(); ++i) questions.asked.push_back(i);
  const bool compares = parts_.reference && !parts_.reference_without_adapters;
  if (compares && !reference_rewards_.defined()) SHOAL_RETURN_IF_ERROR(ScoreReference(questions));
  SHOAL_ASSIGN_OR_RETURN(const Answered answered, AnswerAndScore(parts_.generation, questions));
  Figures figures = {{"eval_reward", answered.rollout.rewards_N.mean().item<double>()}};
  for (const auto& [name, mean] : answered.scores.means)
    figures.emplace_back(absl::StrCat("eval_", name), mean);
  figures.emplace_back("eval_answer_tokens", answered.rollout.mask_NA.sum().item<double>() /
                                                 static_cast<double>(held_out.size()));
  if (compares) {
    const Tensor gain_N = answered.rollout.rewards_N - reference_rewards_;
    const Tensor wins_N = (gain_N > 0).to(at::kDouble) + 0.5 * (gain_N == 0).to(at::kDouble);
    figures.emplace_back("eval_win_rate", wins_N.mean().item<double>());
  }
  return figures;
}

}  // namespace shoal
