// What a recipe asks for that is made for the host's cores alone.
#pragma once

#include <optional>
#include <string>

#include "core/recipe.h"
#include "core/report_error.h"

namespace shoal {

// Names the first such thing, "task ppo does not run on a GPU"; empty: there is none.
// Reads the recipe alone and asks for no GPU.
std::optional<std::string> WhyNotOnGpu(const Recipe& recipe);

// Calls report(key, message) where run.device: cuda meets such a thing.
void ValidateDevice(const LoadedRecipe& recipe, const ReportError& report);

}  // namespace shoal
