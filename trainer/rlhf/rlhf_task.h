// Tasks grpo and ppo.
#pragma once

#include "core/recipe.h"
#include "parallel/comm/communicator.h"
#include "trainer/task.h"

namespace shoal {

// From prompts to export. Collective: every rank of `world` calls it with the same recipe.
absl::Status RunRlhf(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment);

}  // namespace shoal
