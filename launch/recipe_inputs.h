// Are the files that a recipe names there?
#pragma once

#include <vector>

#include "core/recipe.h"

namespace shoal {

// An error, at its key, for each path of the recipe with nothing behind it: data (patterns must
// match), model and tokenizer folders, family file, checkpoint to resume from. Paths are relative
// to the working folder. Only looks; opens nothing.
std::vector<RecipeError> CheckRecipeInputs(const LoadedRecipe& recipe);

}  // namespace shoal
