// Legend: K rewards, N answers.
#include "trainer/rlhf/reward_sum.h"

#include <ATen/ATen.h>

#include "absl/time/time.h"
#include "checkpoint/agreement.h"
#include "core/recipe_schema.h"
#include "trainer/rlhf/reward_model.h"

namespace shoal {
namespace {

std::string NameOf(const RewardSection& section) {
  return EnumYamlName(*RewardSection::Kind_descriptor()->FindValueByNumber(section.kind()));
}

absl::StatusOr<std::unique_ptr<Reward>> MakeReward(const RewardSection& section,
                                                   const RolloutSection& rollout,
                                                   const RewardSum::Sources& sources) {
  switch (section.kind()) {
    case RewardSection::arithmetic:
      return MakeArithmeticReward();
    case RewardSection::regex:
      return MakeRegexReward(section.pattern());
    case RewardSection::length:
      return MakeLengthReward(section.target_tokens());
    case RewardSection::overlong:
      return MakeOverlongReward(
          {.limit = rollout.max_new_tokens(), .buffer = section.buffer_tokens()});
    case RewardSection::program:
      return MakeProgramReward(
          {.command = section.command(), .timeout = absl::Seconds(section.timeout_s())});
    case RewardSection::model:
      return MakeModelReward(sources.files, section.path(), sources.tokenizer, sources.device);
  }
  return absl::InternalError(absl::StrCat("reward kind ", section.kind()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RewardSum>> RewardSum::Create(const LoadedRecipe& recipe,
                                                             const Sources& sources) {
  auto sum = std::unique_ptr<RewardSum>(new RewardSum);
  const RlhfSection& rlhf = recipe.proto.rlhf();
  for (int i = 0; i < rlhf.rewards_size(); ++i) {
    const RewardSection& section = rlhf.rewards(i);
    absl::StatusOr<std::unique_ptr<Reward>> reward = MakeReward(section, rlhf.rollout(), sources);
    if (!reward.ok())
      return recipe.ErrorAt(absl::StrCat("rlhf.rewards.", i), reward.status().message());
    sum->terms_.push_back({NameOf(section), section.weight(), *std::move(reward)});
  }
  return sum;
}

absl::StatusOr<at::Tensor> RewardSum::ScoreShare(std::span<const Answer> answers,
                                                 Communicator& ranks) {
  const int64_t N = static_cast<int64_t>(answers.size()), K = static_cast<int64_t>(terms_.size());
  const int64_t begin = N * ranks.rank() / ranks.size(),
                end = N * (ranks.rank() + 1) / ranks.size();
  at::Tensor scores_KN = at::zeros({K, N}, at::kDouble);
  for (int64_t k = 0; k < K && begin < end; ++k) {
    SHOAL_ASSIGN_OR_RETURN(const std::vector<double> scores,
                           terms_[k].reward->Score(answers.subspan(begin, end - begin)));
    std::copy(scores.begin(), scores.end(), scores_KN.mutable_data_ptr<double>() + k * N + begin);
  }
  return scores_KN;
}

absl::StatusOr<RewardSum::Scores> RewardSum::Score(std::span<const Answer> answers,
                                                   Communicator& ranks) {
  absl::StatusOr<at::Tensor> share = ScoreShare(answers, ranks);
  SHOAL_RETURN_IF_ERROR(Agree(ranks, share.status()));
  at::Tensor scores_KN = *std::move(share);
  ranks.AllReduce(scores_KN);
  Scores scores{.rewards = std::vector<double>(answers.size()), .means = {}};
  for (size_t k = 0; k < terms_.size(); ++k) {
    const at::Tensor each_N = scores_KN[static_cast<int64_t>(k)];
    for (size_t n = 0; n < answers.size(); ++n)
      scores.rewards[n] += terms_[k].weight * each_N.const_data_ptr<double>()[n];
    scores.means.emplace_back(absl::StrCat("reward_", terms_[k].name),
                              each_N.mean().item<double>());
  }
  return scores;
}

}  // namespace shoal
