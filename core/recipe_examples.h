// What is wrong with a recipe of tasks sft, dpo and reward, beyond what every recipe is checked
// for.
#pragma once

#include <functional>
#include <string>

#include "core/recipe.h"

namespace shoal {

// Calls `error` with the key and the message of each fault.
void ValidateExamples(
    const LoadedRecipe& recipe,
    const std::function<void(const std::string& key, std::string message)>& error);

}  // namespace shoal
