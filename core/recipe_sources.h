// From a recipe file, those it extends and the command line to one tree.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/recipe_yaml.h"

namespace shoal {

struct RecipeTree {
  YamlNode root;
  RecipeOrigin file;
  bool broken = false;  // A source could not be read to its end
  std::vector<std::string> notices;
  std::vector<RecipeError> errors;
};

// At most kMaxRecipeBytes + 1 bytes of a file. NotFound, PermissionDenied or InvalidArgument (a
// folder).
absl::StatusOr<std::string> ReadRecipeFile(const std::string& path);

// Parses `text`, merges it over what it extends (paths relative to the folder of `name`) and the
// overrides over both. Brought names are moved to their keys in each source first, so that they
// override each other.
RecipeTree ReadRecipeTree(absl::string_view text, const std::string& name,
                          const std::vector<std::string>& overrides);

}  // namespace shoal
