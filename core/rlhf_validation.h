// What must hold of a recipe's `rlhf` section, and of others beside it.
#pragma once

#include <functional>
#include <string>

#include "core/recipe.h"

namespace shoal {

// Does the recipe learn from its own answers (tasks grpo and ppo), and so need no data.train?
bool IsRlhfTask(const Recipe& recipe);

// Calls report(key, message) for each thing wrong. Of other tasks: the section must not be there.
void ValidateRlhf(const LoadedRecipe& recipe,
                  const std::function<void(const std::string& key, std::string message)>& report);

}  // namespace shoal
