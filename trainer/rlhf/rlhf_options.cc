#include "trainer/rlhf/rlhf_options.h"

namespace shoal {
namespace {

AdvantageSection::Kind AdvantageKindOf(const Recipe& recipe) {
  const AdvantageSection::Kind kind = recipe.rlhf().advantage().kind();
  if (kind != AdvantageSection::auto_kind) return kind;
  return recipe.task() == ppo ? AdvantageSection::gae : AdvantageSection::group;
}

bool KlIsInReward(const Recipe& recipe) {
  const KlSection::Where where = recipe.rlhf().kl().where();
  return where == KlSection::reward || (where == KlSection::auto_where && recipe.task() == ppo);
}

KlEstimator KlEstimatorOf(const Recipe& recipe) {
  switch (recipe.rlhf().kl().estimator()) {
    case KlSection::k1:
      return KlEstimator::kK1;
    case KlSection::k2:
      return KlEstimator::kK2;
    case KlSection::k3:
      return KlEstimator::kK3;
    case KlSection::auto_estimator:
      break;
  }
  return KlIsInReward(recipe) ? KlEstimator::kK1 : KlEstimator::kK3;
}

// Rows of training.global_batch_size in a rollout.
int64_t RowsOf(const Recipe& recipe) {
  const RlhfSection& rlhf = recipe.rlhf();
  if (HasEnvironment(recipe)) {
    return int64_t{1} * rlhf.environment().num_envs() *
           (rlhf.environment().steps() / rlhf.environment().context());
  }
  return int64_t{1} * rlhf.rollout().prompts() * rlhf.rollout().group_size();
}

bool Whitens(const Recipe& recipe) {
  const AdvantageSection& advantage = recipe.rlhf().advantage();
  return advantage.has_whiten() ? advantage.whiten()
                                : AdvantageKindOf(recipe) == AdvantageSection::gae;
}

}  // namespace

absl::StatusOr<int64_t> PlanRollouts(const LoadedRecipe& recipe, const BatchPlan& batch) {
  const RolloutSection& rollout = recipe.proto.rlhf().rollout();
  const int64_t answers = RowsOf(recipe.proto);
  if (answers % batch.global != 0 && HasEnvironment(recipe.proto)) {
    return recipe.ErrorAt("rlhf.environment",
                          absl::StrCat("a rollout of ", answers,
                                       " rows (num_envs * steps / context) does not divide "
                                       "into steps of ",
                                       batch.global, " (", batch.equation, ")"));
  }
  if (answers % batch.global != 0) {
    return recipe.ErrorAt(
        "rlhf.rollout",
        absl::StrCat("a rollout of ", rollout.prompts(), " prompts * ", rollout.group_size(),
                     " answers does not divide into steps of ", batch.global, " (", batch.equation,
                     "): change rlhf.rollout.prompts or training.global_batch_size"));
  }
  const int64_t steps = rollout.epochs() * (answers / batch.global);
  const auto whole = [&](const char* key, int64_t value) -> absl::Status {
    if (value % steps == 0) return absl::OkStatus();
    return recipe.ErrorAt(
        key, absl::StrCat("got ", value, ", expected a multiple of the ", steps,
                          " steps of a rollout, such as ", (value / steps + 1) * steps));
  };
  SHOAL_RETURN_IF_ERROR(whole("training.max_steps", recipe.proto.training().max_steps()));
  SHOAL_RETURN_IF_ERROR(whole("checkpoint.save_steps", recipe.proto.checkpoint().save_steps()));
  return steps;
}

RolloutOptions RolloutOptionsOf(const Recipe& recipe, int64_t steps_per_rollout) {
  const RlhfSection& rlhf = recipe.rlhf();
  const AdvantageSection::Kind kind = AdvantageKindOf(recipe);
  static constexpr GroupScale kScales[] = {GroupScale::kGroupStd, GroupScale::kBatchStd,
                                           GroupScale::kNone};
  const bool gae = kind == AdvantageSection::gae;
  return {.prompts = rlhf.rollout().prompts(),
          .group_size = rlhf.rollout().group_size(),
          .max_new_tokens = rlhf.rollout().max_new_tokens(),
          .temperature = rlhf.rollout().temperature(),
          .missing_eos_penalty = rlhf.rollout().missing_eos_penalty(),
          .seed = recipe.run().seed(),
          .eos_token_ids = {},
          .advantage = gae                                       ? AdvantageKind::kGae
                       : kind == AdvantageSection::leave_one_out ? AdvantageKind::kLeaveOneOut
                                                                 : AdvantageKind::kGroup,
          .group = {.group_size = rlhf.rollout().group_size(),
                    .scale = kScales[rlhf.advantage().scale()],
                    .epsilon = rlhf.advantage().epsilon()},
          .gae = {.gamma = rlhf.advantage().gamma(), .lambda = rlhf.advantage().lambda()},
          .whiten = Whitens(recipe),
          .kl_in_reward = KlIsInReward(recipe) ? rlhf.kl().coef() : 0,
          .kl_estimator = KlEstimatorOf(recipe),
          .old_logprobs = steps_per_rollout > 1};
}

RolloutStore::Options StoreOptionsOf(const Recipe& recipe) {
  const RolloutSection& rollout = recipe.rlhf().rollout();
  static constexpr LossAggregation kAggregations[] = {
      LossAggregation::kTokenMean, LossAggregation::kSequenceMean, LossAggregation::kMaximumLength};
  return {.epochs = rollout.epochs(),
          .answers = RowsOf(recipe),
          .aggregation = kAggregations[recipe.rlhf().loss().aggregation()],
          .max_new_tokens = HasEnvironment(recipe) ? recipe.rlhf().environment().context()
                                                   : rollout.max_new_tokens()};
}

bool HasEnvironment(const Recipe& recipe) {
  return recipe.rlhf().environment().name() != EnvironmentSection::no_environment;
}

EnvironmentOptions EnvironmentOptionsOf(const Recipe& recipe) {
  const RlhfSection& rlhf = recipe.rlhf();
  return {.num_envs = rlhf.environment().num_envs(),
          .steps = rlhf.environment().steps(),
          .context = rlhf.environment().context(),
          .eval_episodes = rlhf.environment().eval_episodes(),
          .temperature = rlhf.rollout().temperature(),
          .seed = recipe.run().seed(),
          .gae = {.gamma = rlhf.advantage().gamma(), .lambda = rlhf.advantage().lambda()},
          .whiten = Whitens(recipe)};
}

MakeEnvironment MakeEnvironmentOf(const Recipe& recipe) {
  SHOAL_CHECK(recipe.rlhf().environment().name() == EnvironmentSection::cartpole);
  return [] { return std::make_unique<CartPole>(); };
}

PolicyObjective::Options PolicyObjectiveOptionsOf(const Recipe& recipe) {
  const RlhfSection& rlhf = recipe.rlhf();
  return {.gspo = rlhf.loss().kind() == PolicyLossSection::gspo,
          .clip = {.low = rlhf.loss().clip_low(),
                   .high = rlhf.loss().clip_high(),
                   .dual = rlhf.loss().dual_clip()},
          .kl_coef = KlIsInReward(recipe) ? 0 : rlhf.kl().coef(),
          .kl = {.estimator = KlEstimatorOf(recipe),
                 .unbiased_gradient = rlhf.kl().unbiased_gradient()},
          .temperature = rlhf.rollout().temperature()};
}

bool HasReference(const Recipe& recipe) { return recipe.rlhf().kl().coef() > 0; }

double LogprobTolerance(const Recipe& recipe) {
  const double given = recipe.rlhf().rollout().logprob_tolerance();
  if (given > 0) return given;
  return recipe.model().dtype() == bfloat16 ? 5e-3 : 1e-5;
}

}  // namespace shoal
