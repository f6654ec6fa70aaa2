// What of the number formats (model.dtype, optimizer.master_weights, zero.gradient_dtype,
// training.loss_scaling, zero.quantized_*) does not go together, or not with the rest.
#pragma once

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Calls error(key, message) for each.
void ValidatePrecision(const LoadedRecipe& recipe, const ReportError& error);

}  // namespace shoal
