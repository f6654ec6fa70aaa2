// What every task does with its run's folder: where its figures go, and which checkpoint it goes on
// from.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/metrics.h"
#include "core/recipe.h"
#include "parallel/comm/communicator.h"
#include "trainer/task.h"

namespace shoal {

// Makes the run's folder and writes the recipe there as it runs, defaults and overrides in their
// places. Collective.
absl::Status WriteResolvedRecipe(const LoadedRecipe& recipe, const TaskEnvironment& environment,
                                 Communicator& ranks);

struct RunSteps {
  int64_t done = 0;  // Before this start: later rows of an earlier one are dropped
  int64_t all = 0;   // Of the whole run
};

// The sinks that recipe.logging asks for, on rank 0 of `ranks`; none elsewhere. Collective.
absl::StatusOr<std::vector<std::unique_ptr<MetricsSink>>> OpenMetricsSinks(
    const LoadedRecipe& recipe, const TaskEnvironment& environment, Communicator& ranks,
    const RunSteps& steps);

// The folder that checkpoint.resume asks for; "": none, the run begins. Collective.
absl::StatusOr<std::string> CheckpointToResume(const LoadedRecipe& recipe,
                                               const TaskEnvironment& environment,
                                               Communicator& ranks);

}  // namespace shoal
