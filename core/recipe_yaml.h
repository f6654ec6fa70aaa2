// YAML text as a tree that remembers where everything stood. Safe for any bytes: what yaml-cpp
// would answer with a stack overflow or an explosion (deep nesting, aliases) is refused while its
// events arrive, and no tree of its own is ever built.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/recipe.h"

namespace shoal {

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  struct Entry;

  Kind kind = Kind::kNull;
  RecipeOrigin origin;
  std::string text;          // Of a scalar, unquoted
  bool quoted = false;       // Of a scalar: written with quotes, so never a number, a bool or null
  bool substituted = false;  // Of a scalar: ${...} was replaced in it
  bool refused = false;      // An error was reported: say no more of it
  bool is_default = false;   // Stands for the schema's default, not for what a user wrote
  std::vector<YamlNode> items;  // Of a list
  std::vector<Entry> entries;   // Of a map, in the order of the text

  bool IsNull() const { return kind == Kind::kNull; }
  bool IsMap() const { return kind == Kind::kMap; }
  bool IsScalar() const { return kind == Kind::kScalar; }
  bool IsList() const { return kind == Kind::kList; }

  Entry* Find(absl::string_view key);
  const Entry* Find(absl::string_view key) const;
};

struct YamlNode::Entry {
  std::string key;
  RecipeOrigin origin;  // Of the key
  YamlNode value;
};

inline constexpr size_t kMaxRecipeBytes = size_t{1} << 20;
inline constexpr int kMaxRecipeDepth = 24;
inline constexpr int kMaxRecipeNodes = 20'000;
inline constexpr size_t kMaxRecipeKeys = 2'000;  // In one map

// Parses one document into `root` (null if the text is empty); errors are appended, with origins in
// `source`. False: the text could not be read to its end, so nothing can be said of what is
// missing.
bool ParseYaml(absl::string_view text, const RecipeOrigin& source, YamlNode& root,
               std::vector<RecipeError>& errors);

// `text` as a YAML scalar that reads back as a string: quoted only where it must be.
std::string QuotedYaml(absl::string_view text);

}  // namespace shoal
