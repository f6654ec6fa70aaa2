// Reading a recipe: from YAML text to the Recipe message, with the place of every value kept.
//
//   SHOAL_ASSIGN_OR_RETURN(LoadedRecipe recipe, LoadRecipe("train.yaml", {"zero.stage=3"}));
//   recipe.proto.zero().stage();                                        // 3
//   return recipe.ErrorAt("model.config.hidden_size", "got 65, expected a multiple of 4 heads");
//   // train.yaml:7:16: model.config.hidden_size: got 65, expected a multiple of 4 heads
//
// What a recipe's YAML may hold: one document of at most 1 MiB of UTF-8, 24 levels deep, without
// anchors, aliases, tags or a key given twice. Scalars take their type from the schema (1e-5 is a
// number where the field is one, `no` is text where text is wanted); null leaves a key at its
// default. On top of YAML:
//   extends: base.yaml     relative to this file; deep-merged, this file wins, lists replace
//   ${run.name}            in a value: another key's value; $${ is a plain ${
//   key.sub=value          on the command line, last; lists as [a, b], a list's entry as
//   data.train.0.path=x
// Names from Hugging Face, DeepSpeed and others are accepted with a notice (see recipe_aliases.h).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/recipe.pb.h"

namespace shoal {

// Where a value was written.
struct RecipeOrigin {
  std::shared_ptr<const std::string>
      source;      // A file's path, or "command line: key=value"; null: nowhere
  int line = 0;    // From 1; 0: the source as a whole
  int column = 0;  // From 1, in characters

  std::string ToString() const;  // "train.yaml:3:7"
};

struct RecipeError {
  RecipeOrigin origin;
  std::string key;  // "zero.stage"; "" for the file as a whole
  std::string message;

  std::string ToString() const;  // "train.yaml:3:7: zero.stage: got 4, expected ..."
};

// Every error on its line, in the order of the text; the command line's last. OK if there are none.
absl::Status RecipeErrorsToStatus(std::vector<RecipeError> errors);

struct LoadedRecipe {
  Recipe proto;                      // Every section is present, references are substituted
  std::vector<std::string> notices;  // "train.yaml:3:1: lr is read as optimizer.learning_rate"
  std::map<std::string, RecipeOrigin>
      origins;        // Key path -> its value's place, of every key that was given
  RecipeOrigin file;  // The recipe itself

  // Was the key given, in a file or on the command line? (Else it has its default.)
  bool IsSet(const std::string& key) const { return origins.count(key) != 0; }

  // The place of `key`, else of the nearest section around it that was given, else the file.
  RecipeOrigin OriginOf(const std::string& key) const;

  // InvalidArgument "file:line:column: key: message".
  absl::Status ErrorAt(const std::string& key, absl::string_view message) const;

  // All values, defaults too, as a recipe that reads back to an equal `proto`.
  std::string ResolvedYaml() const;

  // 16 hex digits; equal recipes are equal, wherever and in whatever form they were written.
  std::string Hash() const;
};

// Reads and validates (see recipe_validation.h) a recipe. `overrides` are "key.sub=value" texts.
// Errors: InvalidArgument with every error on its own line, NotFound or PermissionDenied if the
// file cannot be read.
absl::StatusOr<LoadedRecipe> LoadRecipe(const std::string& path,
                                        const std::vector<std::string>& overrides = {});

// The same from text; `name` stands for the path in messages, and `extends` is relative to it.
absl::StatusOr<LoadedRecipe> ParseRecipe(absl::string_view text, const std::string& name,
                                         const std::vector<std::string>& overrides = {});

}  // namespace shoal
