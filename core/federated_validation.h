// What must hold of a recipe's `federated` section, and of others beside it.
#pragma once

#include <functional>
#include <string>

#include "core/recipe.h"

namespace shoal {

// Calls report(key, message) for each thing wrong. Of other tasks: the section must not be there.
void ValidateFederated(
    const LoadedRecipe& recipe,
    const std::function<void(const std::string& key, std::string message)>& report);

}  // namespace shoal
