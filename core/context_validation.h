// What a recipe may say of ranks that share sequences.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

void ValidateContext(const LoadedRecipe& recipe, const ReportError& error);

}  // namespace shoal
