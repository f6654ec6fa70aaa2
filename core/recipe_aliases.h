// The names that users bring from Hugging Face TrainingArguments, DeepSpeed, torchtitan and
// axolotl, and the keys of a recipe that they mean. A brought name may stand at the top of a
// recipe, in `training`, or in the section of the key it means.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/recipe_yaml.h"

namespace shoal {

// The key meant by `name` in section `section` ("" for the top), or "".
std::string CanonicalKey(absl::string_view section, absl::string_view name);

// The key meant by the brought name nearest to a misspelt one, or "".
std::string NearestAlias(const std::string& name);

// Moves every brought name of the recipe `root` to the key it means. Each is reported in `notices`,
// a key that is then given twice in `errors`.
void ApplyAliases(YamlNode& root, std::vector<std::string>& notices,
                  std::vector<RecipeError>& errors);

// A dotted path with a brought name at its start or in its section, as its canonical path; else
// itself.
std::string CanonicalPath(const std::string& path);

// A brought value (bf16 for bfloat16) as the schema's, or itself.
std::string CanonicalValue(absl::string_view key, const std::string& value);

}  // namespace shoal
