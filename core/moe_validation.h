// What of `moe` does not go with the task or the model section.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Calls error(key, message) for each.
void ValidateMoe(const LoadedRecipe& recipe, const ReportError& error);

}  // namespace shoal
