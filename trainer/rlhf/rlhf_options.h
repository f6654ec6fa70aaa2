// From the recipe's rlhf section to the options of the objects that it describes.
#pragma once

#include "core/recipe.h"
#include "core/recipe_validation.h"
#include "trainer/rlhf/environment_maker.h"
#include "trainer/rlhf/policy_objective.h"
#include "trainer/rlhf/rollout_batches.h"
#include "trainer/rlhf/rollout_maker.h"

namespace shoal {

// Steps of the optimizer that a rollout feeds. InvalidArgument at the key to blame: answers that
// do not divide into steps, max_steps or save_steps in the middle of a rollout, sections that do
// not go together.
absl::StatusOr<int64_t> PlanRollouts(const LoadedRecipe& recipe, const BatchPlan& batch);

// `steps_per_rollout` as planned; the end-of-sequence tokens are left open.
RolloutOptions RolloutOptionsOf(const Recipe& recipe, int64_t steps_per_rollout);
bool HasEnvironment(const Recipe& recipe);
EnvironmentOptions EnvironmentOptionsOf(const Recipe& recipe);
MakeEnvironment MakeEnvironmentOf(const Recipe& recipe);
RolloutStore::Options StoreOptionsOf(const Recipe& recipe);
PolicyObjective::Options PolicyObjectiveOptionsOf(const Recipe& recipe);
// KL's coefficient is above 0, so there is a reference.
bool HasReference(const Recipe& recipe);
// How far log-probabilities of rollout and training may lie apart.
double LogprobTolerance(const Recipe& recipe);

}  // namespace shoal
