// What of `optimizer` does not go together, or not with the task.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Calls error(key, message) for each.
void ValidateOptimizer(const LoadedRecipe& recipe, const ReportError& error);

}  // namespace shoal
