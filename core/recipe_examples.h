// What is wrong with a recipe of tasks sft, dpo and reward, beyond what every recipe is checked
// for.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Calls `error` with the key and the message of each fault.
void ValidateExamples(const LoadedRecipe& recipe, const ReportError& error);

}  // namespace shoal
