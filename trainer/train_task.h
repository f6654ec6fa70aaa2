// Tasks that are one training run: an objective over a source of batches.
#pragma once

#include <memory>

#include "absl/strings/str_cat.h"
#include "core/recipe.h"
#include "core/status.h"
#include "parallel/comm/communicator.h"
#include "trainer/task.h"

namespace shoal {

// What follows any task that leaves checkpoints of a language model: the Hugging Face folder, text
// from it, the report. Collective.
absl::Status FinishRun(const LoadedRecipe& recipe, Communicator& world,
                       const TaskEnvironment& environment);

// Trains what is left of a run, then FinishRun. `Run` is built, knows whether it is complete() and
// can Train(), as TrainingRun does; its memory is free before the export. Collective.
template <typename Run>
absl::Status RunToEnd(const LoadedRecipe& recipe, Communicator& world,
                      const TaskEnvironment& environment) {
  {
    SHOAL_ASSIGN_OR_RETURN(const std::unique_ptr<Run> run, Run::Build(recipe, world, environment));
    if (run->complete()) {
      environment.log.Info(
          absl::StrCat("complete  step ", run->num_steps(), " is trained and saved"));
    } else {
      SHOAL_RETURN_IF_ERROR(run->Train());
    }
  }
  return FinishRun(recipe, world, environment);
}

// From data to export. Collective: every rank of `world` calls it with the same recipe.
absl::Status RunTraining(const LoadedRecipe& recipe, Communicator& world,
                         const TaskEnvironment& environment);

}  // namespace shoal
