// What of `optimizer` does not go together, or not with the task.
#pragma once

#include <functional>
#include <string>

#include "core/recipe.h"

namespace shoal {

// Calls error(key, message) for each.
void ValidateOptimizer(const LoadedRecipe& recipe,
                       const std::function<void(const std::string&, std::string)>& error);

}  // namespace shoal
