// The reference of the recipe, made of recipe.proto: its comments travel in the library.
#pragma once

#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// One section or key.
struct RecipeDoc {
  std::string path;     // "data.train.path"; a list's entries are not numbered
  std::string comment;  // One paragraph
  const google::protobuf::FieldDescriptor* field;  // Never null
  std::vector<std::string> value_comments;         // Of an enum's values, in their order
};

// The whole schema in its order, sections before their keys.
std::vector<RecipeDoc> RecipeReference();

// For people: a key, a section with its keys, or all with "". InvalidArgument with the nearest
// name.
absl::StatusOr<std::string> RecipeReferenceText(absl::string_view path);

// As one page: docs/recipe-reference.md.
std::string RecipeReferenceMarkdown();

// For editors: JSON Schema, draft 2020-12.
std::string RecipeJsonSchema();

}  // namespace shoal
