// What of zero.offload_* and training.offload_activations does not go together, or not with the
// rest.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Calls error(key, message) for each.
void ValidateOffload(const LoadedRecipe& recipe, const ReportError& error);

}  // namespace shoal
