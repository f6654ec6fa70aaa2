// Task `federated`: rounds from data to export. See docs/federated.md.
#pragma once

#include "core/recipe.h"
#include "parallel/comm/communicator.h"
#include "trainer/task.h"

namespace shoal {

// Collective: every rank of `world` calls it with the same recipe.
absl::Status RunFederated(const LoadedRecipe& recipe, Communicator& world,
                          const TaskEnvironment& environment);

}  // namespace shoal
