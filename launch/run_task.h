// A recipe's task on the ranks of a job.
#pragma once

#include "core/recipe.h"
#include "parallel/comm/communicator.h"
#include "trainer/task.h"

namespace shoal {

// Does what the recipe asks. Collective: every rank of `world` calls it with the same recipe. What
// fails in tensor mathematics or in a collective comes back as a Status.
absl::Status RunTask(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment);

}  // namespace shoal
