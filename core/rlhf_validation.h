// What must hold of a recipe's `rlhf` section, and of others beside it.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Does the recipe learn from its own answers (tasks grpo and ppo), and so need no data.train?
bool IsRlhfTask(const Recipe& recipe);
// One model learns from data that lies there, step by step: no rollouts, no clients.
bool IsPlainTraining(const Recipe& recipe);

// Calls report(key, message) for each thing wrong. Of other tasks: the section must not be there.
void ValidateRlhf(const LoadedRecipe& recipe, const ReportError& report);

}  // namespace shoal
