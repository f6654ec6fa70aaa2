// Tasks that are one training run: an objective over a source of batches.
#pragma once

#include "core/recipe.h"
#include "parallel/comm/communicator.h"
#include "trainer/task.h"

namespace shoal {

// From data to export. Collective: every rank of `world` calls it with the same recipe.
absl::Status RunTraining(const LoadedRecipe& recipe, Communicator& world,
                         const TaskEnvironment& environment);

// What follows any task that leaves checkpoints of a language model: the Hugging Face folder, text
// from it, the report. Collective.
absl::Status FinishRun(const LoadedRecipe& recipe, Communicator& world,
                       const TaskEnvironment& environment);

}  // namespace shoal
