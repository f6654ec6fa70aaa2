// Legend: E copies of the environment, S steps of each, F numbers of an observation, N rows, A
// steps of a row, C states at which an episode was cut.
#include "trainer/rlhf/environment_maker.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include <ATen/ATen.h>

#include "core/random.h"
#include "models/blocks/observation.h"

namespace shoal {

using at::Tensor;

// One copy, as this rank plays it.
struct EnvironmentMaker::Copy {
  int64_t number = 0;
  std::unique_ptr<Environment> environment;
  // Since the window's beginning.
  std::vector<std::vector<double>> observations;
  std::vector<int32_t> episodes;

  void See(std::vector<double> observation, int32_t episode) {
    observations.push_back(std::move(observation));
    episodes.push_back(episode);
  }
  void BeginWindow() {
    observations.erase(observations.begin(), observations.end() - 1);
    episodes.erase(episodes.begin(), episodes.end() - 1);
  }
};

// All copies', on every rank; float64.
struct EnvironmentMaker::Played {
  Tensor observations_ESF, actions_ES, rewards_ES, logprobs_ES, episodes_ES;
  Tensor ends_ES;      // 1: terminated, 2: cut, after this step
  Tensor reached_ESF;  // The observation that a step led to, before any reset
};

namespace {

constexpr double kTerminated = 1, kCut = 2;

void SetRow(Tensor& to_F, const std::vector<double>& from) {
  std::copy(from.begin(), from.end(), to_F.mutable_data_ptr<double>());
}

}  // namespace

// log-softmax of the policy's logits at each copy's newest observation: (copies, actions) float64,
// in host memory.
Tensor EnvironmentMaker::ActionLogprobs(std::span<const Copy> copies) const {
  const int64_t B = static_cast<int64_t>(copies.size());
  const int64_t T = static_cast<int64_t>(copies[0].observations.size());
  const int64_t F = static_cast<int64_t>(copies[0].observations[0].size());
  Batch batch{.tokens_BT = at::zeros({B, T}, at::kLong),
              .targets_BT = at::full({B, T}, Batch::kIgnoreIndex, at::kLong),
              .positions_BT = at::zeros({B, T}, at::kLong),
              .documents_BT = at::zeros({B, T}, at::kInt)};
  Tensor observations_BTF = at::zeros({B, T, F}, at::kDouble);
  for (int64_t b = 0; b < B; ++b) {
    const Copy& copy = copies[b];
    std::copy(copy.episodes.begin(), copy.episodes.end(),
              batch.documents_BT.mutable_data_ptr<int32_t>() + b * T);
    for (int64_t t = 0; t < T; ++t) {
      Tensor at_F = observations_BTF[b][t];
      SetRow(at_F, copy.observations[t]);
    }
  }
  SetPositions(batch);
  batch.named[ObservationBlock::kName] = observations_BTF;
  const at::NoGradGuard no_grad;
  const GatheredWeights& weights = parts_.generation.weights();
  const Tensor logits_BA =
      ForwardAll(weights.model(), weights.weights(), batch, {.head_mode = HeadMode::kLogits})
          .logits_BTV.select(1, T - 1);
  return at::log_softmax(logits_BA.to(at::kCPU, at::kDouble) / options_.temperature, -1);
}

EnvironmentMaker::Played EnvironmentMaker::Play(int64_t number) {
  const int64_t E = options_.num_envs, S = options_.steps;
  Communicator& ranks = parts_.policy.mesh().control();
  const uint64_t stream = StreamId("environment") + static_cast<uint64_t>(number * E);
  std::vector<Copy> copies;
  for (int64_t e = ranks.rank(); e < E; e += ranks.size())
    copies.push_back({.number = e, .environment = parts_.make()});
  const int64_t F = parts_.make()->observation_size();
  const auto zeros = [&](std::vector<int64_t> sizes) { return at::zeros(sizes, at::kDouble); };
  Played played{.observations_ESF = zeros({E, S, F}),
                .actions_ES = zeros({E, S}),
                .rewards_ES = zeros({E, S}),
                .logprobs_ES = zeros({E, S}),
                .episodes_ES = zeros({E, S}),
                .ends_ES = zeros({E, S}),
                .reached_ESF = zeros({E, S, F})};
  const auto begin = [&](Copy& copy, int32_t episode) {
    const Philox seeds(options_.seed, stream + static_cast<uint64_t>(copy.number));
    copy.See(copy.environment->Reset(seeds.Bits(S + episode)), episode);
  };
  for (Copy& copy : copies) begin(copy, 0);
  for (int64_t s = 0; s < S && !copies.empty(); ++s) {
    const Tensor logprobs_BA = ActionLogprobs(copies);
    for (size_t b = 0; b < copies.size(); ++b) {
      Copy& copy = copies[b];
      const int64_t e = copy.number;
      const Tensor logprobs_A = logprobs_BA[static_cast<int64_t>(b)].contiguous();
      const double* each = logprobs_A.const_data_ptr<double>();
      // Inverse of the cumulative distribution at a number of this copy and step.
      double left = Philox(options_.seed, stream + static_cast<uint64_t>(e)).Uniform(s);
      int64_t action = 0;
      while (action + 1 < logprobs_A.numel() && (left -= std::exp(each[action])) >= 0) ++action;
      const EnvironmentStep step = copy.environment->Step(action);
      Tensor seen_F = played.observations_ESF[e][s], reached_F = played.reached_ESF[e][s];
      SetRow(seen_F, copy.observations.back());
      SetRow(reached_F, step.observation);
      played.actions_ES[e][s] = action;
      played.rewards_ES[e][s] = step.reward;
      played.logprobs_ES[e][s] = each[action];
      const int32_t episode = copy.episodes.back();
      played.episodes_ES[e][s] = episode;
      if (step.terminated || step.truncated) {
        played.ends_ES[e][s] = step.terminated ? kTerminated : kCut;
        begin(copy, episode + 1);
      } else {
        if (s + 1 == S) played.ends_ES[e][s] = kCut;
        copy.See(step.observation, episode);
      }
      if ((s + 1) % options_.context == 0) copy.BeginWindow();
    }
  }
  for (Tensor* each :
       {&played.observations_ESF, &played.actions_ES, &played.rewards_ES, &played.logprobs_ES,
        &played.episodes_ES, &played.ends_ES, &played.reached_ESF})
    ranks.AllReduce(*each);
  return played;
}

// The critic's, of observations that nothing went before: (C) on every rank.
Tensor EnvironmentMaker::ValuesOf(const Tensor& observations_CF) {
  const int64_t C = observations_CF.size(0),
                padded = (C + layout_.multiple - 1) / layout_.multiple * layout_.multiple;
  DeviceMesh& mesh = parts_.critic.mesh();
  Tensor values_C = at::zeros({C}, at::kDouble);
  if (C == 0) return values_C;
  Batch batch{.tokens_BT = at::zeros({padded, 1}, at::kLong),
              .targets_BT = at::zeros({padded, 1}, at::kLong),
              .positions_BT = at::zeros({padded, 1}, at::kLong),
              .documents_BT = {},
              .num_targets = padded};
  batch.named[ObservationBlock::kName] =
      at::constant_pad_nd(observations_CF, {0, 0, 0, padded - C}).unsqueeze(1);
  const Activations out = parts_.critic_runner.Head(batch, {.mode = HeadMode::kScores});
  if (mesh.reports_loss() && mesh.data_parallel_rank() == 0)
    values_C.copy_(out.scores_BT.select(1, 0).narrow(0, 0, C));
  mesh.control().AllReduce(values_C);
  return values_C;
}

absl::StatusOr<Rollout> EnvironmentMaker::Make(int64_t number) {
  const auto start = std::chrono::steady_clock::now();
  SHOAL_RETURN_IF_ERROR(parts_.generation.Refresh());
  const Played played = Play(number);
  parts_.generation.Release();
  const int64_t E = options_.num_envs, S = options_.steps, A = options_.context, N = E * S / A;

  Rollout rollout{.number = number};
  const Tensor actions_NA = played.actions_ES.view({N, A}).to(at::kLong);
  for (int64_t n = 0; n < N; ++n) {
    const int64_t* actions = actions_NA.const_data_ptr<int64_t>() + n * A;
    Rollout::Row row{.prompt = n, .tokens = {0}, .prompt_length = 1};
    row.tokens.insert(row.tokens.end(), actions, actions + A);
    rollout.rows.push_back(std::move(row));
  }
  rollout.mask_NA = at::ones({N, A}, at::kBool);
  rollout.inputs = {ObservationBlock::kName};
  auto& of_tokens = rollout.of_tokens;
  of_tokens[ObservationBlock::kName] = played.observations_ESF.view({N, A, -1});
  rollout.episodes_NA = played.episodes_ES.view({N, A}).to(at::kInt);
  const auto pass = [&](BlockRunner& runner, Engine& engine, BlockRunner::HeadOptions options) {
    return HeadOfRollout(runner, engine.mesh(), rollout, layout_, options);
  };
  of_tokens[kOldLogprobs] =
      pass(parts_.policy_runner, parts_.policy,
           {.mode = HeadMode::kLogprobs, .temperature = options_.temperature});
  of_tokens[kOldValues] = pass(parts_.critic_runner, parts_.critic, {.mode = HeadMode::kScores});

  const Tensor error_NA =
      at::expm1((of_tokens.at(kOldLogprobs) - played.logprobs_ES.view({N, A})).abs());
  const double episodes = (played.ends_ES > 0).sum().item<double>();
  figures_ = {{"reward", played.rewards_ES.sum().item<double>() / episodes},
              {"logprob_error", error_NA.mean().item<double>()},
              {"entropy", -played.logprobs_ES.mean().item<double>()}};
  AddAdvantages(rollout, played);
  figures_.emplace_back(
      "rollout_seconds",
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return std::move(rollout);
}

// Every run of steps between ends is a row of its own, with the value of the state where it was
// cut.
void EnvironmentMaker::AddAdvantages(Rollout& rollout, const Played& played) {
  const int64_t E = options_.num_envs, S = options_.steps;
  struct Segment {
    int64_t first, length;
  };
  std::vector<Segment> segments;
  std::vector<Tensor> cut_at;
  std::vector<int64_t> cut_segments;
  const Tensor ends_ES = played.ends_ES.contiguous();
  const double* ends = ends_ES.const_data_ptr<double>();
  int64_t longest = 1;
  for (int64_t i = 0, first = 0; i < E * S; ++i) {
    if (ends[i] == 0) continue;
    if (ends[i] == kCut) {
      cut_segments.push_back(static_cast<int64_t>(segments.size()));
      cut_at.push_back(played.reached_ESF[i / S][i % S]);
    }
    segments.push_back({first, i + 1 - first});
    longest = std::max(longest, segments.back().length);
    first = i + 1;
  }
  const int64_t G = static_cast<int64_t>(segments.size());
  Tensor bootstrap_G = at::zeros({G}, at::kDouble);
  if (!cut_at.empty())
    bootstrap_G.index_copy_(0, at::tensor(cut_segments), ValuesOf(at::stack(cut_at)));

  const Tensor values = rollout.of_tokens.at(kOldValues).reshape({-1}),
               rewards = played.rewards_ES.reshape({-1});
  Tensor rewards_GT = at::zeros({G, longest}, at::kDouble), values_GT = at::zeros_like(rewards_GT),
         mask_GT = at::zeros({G, longest}, at::kBool);
  for (int64_t g = 0; g < G; ++g) {
    const auto [first, length] = segments[g];
    rewards_GT[g].narrow(0, 0, length).copy_(rewards.narrow(0, first, length));
    values_GT[g].narrow(0, 0, length).copy_(values.narrow(0, first, length));
    mask_GT[g].narrow(0, 0, length).fill_(true);
  }
  const GaeResult gae =
      GeneralizedAdvantages(rewards_GT, values_GT, mask_GT, bootstrap_G, options_.gae);
  Tensor advantages = at::zeros_like(values), returns = at::zeros_like(values);
  for (int64_t g = 0; g < G; ++g) {
    const auto [first, length] = segments[g];
    advantages.narrow(0, first, length).copy_(gae.advantages_BT[g].narrow(0, 0, length));
    returns.narrow(0, first, length).copy_(gae.returns_BT[g].narrow(0, 0, length));
  }
  figures_.emplace_back("explained_variance",
                        1 - (advantages.var() / returns.var().clamp_min(1e-12)).item<double>());
  const auto sizes = rollout.mask_NA.sizes();
  rollout.of_tokens[kReturns] = returns.view(sizes);
  rollout.of_tokens[kAdvantages] =
      options_.whiten ? Whiten(advantages.view(sizes), rollout.mask_NA) : advantages.view(sizes);
}

absl::StatusOr<EnvironmentMaker::Figures> EnvironmentMaker::Evaluate() {
  SHOAL_RETURN_IF_ERROR(parts_.generation.Refresh());
  Communicator& ranks = parts_.policy.mesh().control();
  const int64_t E = options_.eval_episodes;
  Tensor returns_E = at::zeros({E}, at::kDouble);
  std::vector<Copy> copies;
  for (int64_t e = ranks.rank(); e < E; e += ranks.size()) {
    Copy& copy = copies.emplace_back();
    copy.number = e;
    copy.environment = parts_.make();
    const Philox seeds(options_.seed, StreamId("evaluation"));
    copy.See(copy.environment->Reset(seeds.Bits(static_cast<uint64_t>(e))), 0);
  }
  for (int64_t s = 0; !copies.empty(); ++s) {
    const Tensor actions_B = ActionLogprobs(copies).argmax(-1);
    for (size_t b = copies.size(); b-- > 0;) {
      Copy& copy = copies[b];
      const EnvironmentStep step =
          copy.environment->Step(actions_B[static_cast<int64_t>(b)].item<int64_t>());
      returns_E[copy.number] += step.reward;
      copy.See(step.observation, 0);
      if ((s + 1) % options_.context == 0) copy.BeginWindow();
      if (step.terminated || step.truncated) copies.erase(copies.begin() + b);
    }
  }
  parts_.generation.Release();
  ranks.AllReduce(returns_E);
  return Figures{{"eval_reward", returns_E.mean().item<double>()},
                 {"eval_reward_min", returns_E.min().item<double>()}};
}

}  // namespace shoal
