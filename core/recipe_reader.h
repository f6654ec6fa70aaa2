// From a recipe's tree to its message: references, types, ranges, unknown and missing keys.
#pragma once

#include <string>

#include "core/recipe_yaml.h"

namespace shoal {

// Replaces ${key.path} in the values of `root` (and in defaults that hold one, which then appear as
// nodes with is_default). A reference must name a single scalar of the schema; cycles and texts
// over 64 KiB are errors. `$${` stands for `${`. Free-form maps are left as they are.
void SubstituteReferences(YamlNode& root, std::vector<RecipeError>& errors);

// Fills `recipe` and `origins` from the tree. Every section is made present.
void ReadMessage(const YamlNode& root, Recipe& recipe, std::map<std::string, RecipeOrigin>& origins,
                 std::vector<RecipeError>& errors);

// Text as it is shown in a message: quoted if odd, shortened if long, on one line by RecipeError.
std::string Shown(const YamlNode& value);

}  // namespace shoal
