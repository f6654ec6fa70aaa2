#include "core/recipe.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/recipe_reader.h"
#include "core/recipe_sources.h"
#include "core/recipe_validation.h"
#include "core/status.h"

namespace shoal {
namespace {

constexpr size_t kMaxErrorsShown = 50;

// References and fields of a tree whose syntax was fine, then what the values are to one another.
void FillRecipe(RecipeTree& tree, LoadedRecipe& recipe) {
  if (tree.broken) return;
  SubstituteReferences(tree.root, tree.errors);
  ReadMessage(tree.root, recipe.proto, recipe.origins, tree.errors);
  // A wrong value is absent from the message: what is said of the whole could be wrong for that
  // alone.
  if (!tree.errors.empty()) return;
  tree.errors = ValidateRecipe(recipe);
}

}  // namespace

std::string RecipeOrigin::ToString() const {
  if (source == nullptr) return "recipe";
  return line == 0 ? *source : absl::StrCat(*source, ":", line, ":", column);
}

std::string RecipeError::ToString() const {
  std::string line;
  for (const char c :
       absl::StrCat(origin.ToString(), ": ", key, key.empty() ? "" : ": ", message)) {
    // Keys and values are shown as they were written, but never break the line.
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      absl::StrAppendFormat(&line, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      line += c;
    }
  }
  return line;
}

absl::Status RecipeErrorsToStatus(std::vector<RecipeError> errors) {
  if (errors.empty()) return absl::OkStatus();
  const auto place = [](const RecipeError& error) {
    return std::make_pair(error.origin.line, error.origin.column);
  };
  std::stable_sort(errors.begin(), errors.end(), [&](const RecipeError& a, const RecipeError& b) {
    const bool a_command = a.origin.line == 0, b_command = b.origin.line == 0;
    if (a_command || b_command) return !a_command && b_command;
    if (*a.origin.source != *b.origin.source) return *a.origin.source < *b.origin.source;
    return place(a) < place(b);
  });
  std::vector<std::string> lines;
  for (const RecipeError& error : errors) {
    if (lines.size() == kMaxErrorsShown) {
      lines.push_back(absl::StrCat("and ", errors.size() - kMaxErrorsShown, " more errors"));
      break;
    }
    lines.push_back(error.ToString());
  }
  return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
}

RecipeOrigin LoadedRecipe::OriginOf(const std::string& key) const {
  for (std::string path = key; !path.empty();
       path.resize(path.rfind('.') == std::string::npos ? 0 : path.rfind('.'))) {
    const auto found = origins.find(path);
    if (found != origins.end()) return found->second;
  }
  return file;
}

absl::Status LoadedRecipe::ErrorAt(const std::string& key, absl::string_view message) const {
  return RecipeErrorsToStatus({{OriginOf(key), key, std::string(message)}});
}

absl::StatusOr<LoadedRecipe> ParseRecipe(absl::string_view text, const std::string& name,
                                         const std::vector<std::string>& overrides) {
  RecipeTree tree = ReadRecipeTree(text, name, overrides);
  LoadedRecipe recipe;
  recipe.file = tree.file;
  FillRecipe(tree, recipe);
  recipe.notices = std::move(tree.notices);
  SHOAL_RETURN_IF_ERROR(RecipeErrorsToStatus(std::move(tree.errors)));
  return recipe;
}

absl::StatusOr<LoadedRecipe> LoadRecipe(const std::string& path,
                                        const std::vector<std::string>& overrides) {
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadRecipeFile(path));
  return ParseRecipe(text, path, overrides);
}

}  // namespace shoal
