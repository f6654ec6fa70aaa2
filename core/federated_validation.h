// What must hold of a recipe's `federated` section, and of others beside it.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Calls report(key, message) for each thing wrong. Of other tasks: the section must not be there.
void ValidateFederated(const LoadedRecipe& recipe, const ReportError& report);

}  // namespace shoal
