#include "core/recipe_sources.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/recipe_aliases.h"
#include "core/recipe_schema.h"
#include "core/status.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxExtends = 16;  // Files in a chain

bool IsIndex(absl::string_view text) {
  return !text.empty() && text.size() <= 6 &&
         text.find_first_not_of("0123456789") == absl::string_view::npos;
}

class TreeReader {
 public:
  explicit TreeReader(RecipeTree& tree) : tree_(tree) {}

  // The tree of one file over those it extends. `chain` holds the canonical paths that led here.
  YamlNode ReadFile(absl::string_view text, const RecipeOrigin& source,
                    std::vector<std::string> chain) {
    YamlNode root;
    if (!ParseYaml(text, source, root, tree_.errors)) tree_.broken = true;
    if (!root.IsMap()) {
      if (!root.IsNull()) Error(root.origin, "", "expected a map of sections, such as `training:`");
      root = {};
      root.kind = YamlNode::Kind::kMap;
      root.origin = {source.source, 1, 1};
    }
    ApplyAliases(root, tree_.notices, tree_.errors);
    YamlNode::Entry* extends = root.Find("extends");
    if (extends == nullptr) return root;
    YamlNode base = ReadBase(extends->value, *source.source, std::move(chain));
    root.entries.erase(root.entries.begin() + (extends - root.entries.data()));
    Merge(base, std::move(root), Recipe::descriptor(), "");
    return base;
  }

  void Override(const std::string& text) {
    const RecipeOrigin origin{
        std::make_shared<const std::string>(absl::StrCat("command line: ", text)), 0, 0};
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      return Error(origin, "", "expected key=value, such as training.max_steps=100");
    }
    const std::string path = text.substr(0, equals);
    const std::vector<std::string> names = absl::StrSplit(path, '.');
    if (names.size() > kMaxRecipeDepth)
      return Error(origin, "", absl::StrCat("more than ", kMaxRecipeDepth, " names in a key"));
    for (const std::string& name : names) {
      if (name.empty()) return Error(origin, path, "an empty name between the dots of the key");
    }
    if (path == "extends")
      return Error(origin, path,
                   "belongs into a file, a command line has nothing to be merged over it");
    YamlNode value = OverrideValue(path, text.substr(equals + 1), origin);
    for (auto name = names.rbegin(); name != names.rend(); ++name) {
      YamlNode map;
      map.kind = YamlNode::Kind::kMap;
      map.origin = origin;
      map.entries.push_back({*name, origin, std::move(value)});
      value = std::move(map);
    }
    ApplyAliases(value, tree_.notices, tree_.errors);
    Merge(tree_.root, std::move(value), Recipe::descriptor(), "");
  }

 private:
  void Error(const RecipeOrigin& origin, const std::string& key, std::string message) {
    tree_.errors.push_back({origin, key, std::move(message)});
  }

  YamlNode ReadBase(const YamlNode& extends, const std::string& from,
                    std::vector<std::string> chain) {
    YamlNode none;
    none.kind = YamlNode::Kind::kMap;
    none.origin = extends.origin;
    if (!extends.IsScalar() || extends.text.empty()) {
      Error(extends.origin, "extends", "expected the path of one recipe, relative to this file");
      return none;
    }
    const std::string path =
        (fs::path(from).parent_path() / extends.text).lexically_normal().string();
    std::error_code ignored;
    const std::string canonical = fs::weakly_canonical(path, ignored).string();
    const std::string self = fs::weakly_canonical(from, ignored).string();
    chain.push_back(self);
    for (const std::string& earlier : chain) {
      if (earlier != canonical) continue;
      Error(extends.origin, "extends",
            absl::StrCat(path, " extends this file in turn, expected no cycle"));
      return none;
    }
    if (chain.size() >= kMaxExtends) {
      Error(extends.origin, "extends",
            absl::StrCat("more than ", kMaxExtends, " files in a chain"));
      return none;
    }
    absl::StatusOr<std::string> text = ReadRecipeFile(path);
    if (!text.ok()) {
      Error(extends.origin, "extends", std::string(text.status().message()));
      tree_.broken = true;
      return none;
    }
    return ReadFile(*text, {std::make_shared<const std::string>(path), 1, 1}, std::move(chain));
  }

  // Where the schema wants one scalar the text is taken as it is, unless it is quoted; else it is
  // YAML.
  YamlNode OverrideValue(const std::string& path, const std::string& text,
                         const RecipeOrigin& origin) {
    std::vector<std::string> names = absl::StrSplit(CanonicalPath(path), '.');
    std::erase_if(names, [](const std::string& name) { return IsIndex(name); });
    const FieldDescriptor* field = FindRecipeField(absl::StrJoin(names, "."));
    const bool scalar =
        field != nullptr && field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE &&
        (!field->is_repeated() || IsIndex(std::string(path.substr(path.rfind('.') + 1))));
    const bool quoted = !text.empty() && (text[0] == '"' || text[0] == '\'');
    std::vector<RecipeError> errors;
    YamlNode value;
    if (scalar && !quoted) {
      const bool null = text == "null" || text == "~";
      value.kind = null ? YamlNode::Kind::kNull : YamlNode::Kind::kScalar;
      value.text = null ? "" : text;
      // In quotes any text is YAML, but for bytes that no recipe may hold.
      YamlNode ignored;
      ParseYaml(QuotedYaml(text), origin, ignored, errors);
    } else if (!ParseYaml(text, origin, value, errors)) {
      tree_.broken = true;
    }
    for (const RecipeError& error : errors) Error(origin, path, error.message);
    SetOrigin(value, origin);
    return value;
  }

  static void SetOrigin(YamlNode& node, const RecipeOrigin& origin) {
    node.origin = origin;
    for (YamlNode& item : node.items) SetOrigin(item, origin);
    for (YamlNode::Entry& entry : node.entries) {
      entry.origin = origin;
      SetOrigin(entry.value, origin);
    }
  }

  // `over` wins. `message` is the schema of the maps, null inside free-form ones.
  void Merge(YamlNode& base, YamlNode over, const MessageDescriptor* message,
             const std::string& path) {
    for (YamlNode::Entry& entry : over.entries) {
      const FieldDescriptor* field =
          message == nullptr ? nullptr : message->FindFieldByName(entry.key);
      const std::string key = path.empty() ? entry.key : absl::StrCat(path, ".", entry.key);
      YamlNode::Entry* below = base.Find(entry.key);
      if (field != nullptr && field->is_repeated() && IsIndexed(entry.value)) {
        if (below == nullptr) {
          base.entries.push_back({entry.key, entry.origin, {}});
          below = &base.entries.back();
        }
        MergeIndexed(below->value, std::move(entry.value), *field, key);
      } else if (below != nullptr && below->value.IsMap() && entry.value.IsMap()) {
        const bool section = field != nullptr && IsSection(*field);
        Merge(below->value, std::move(entry.value), section ? field->message_type() : nullptr, key);
      } else if (below != nullptr) {
        *below = std::move(entry);
      } else {
        base.entries.push_back(std::move(entry));
      }
    }
  }

  // data.train.0.path=x arrives as a map with the key "0" from the command line.
  static bool IsIndexed(const YamlNode& node) {
    return node.IsMap() && node.origin.line == 0 && node.entries.size() == 1 &&
           IsIndex(node.entries[0].key);
  }

  void MergeIndexed(YamlNode& list, YamlNode over, const FieldDescriptor& field,
                    const std::string& path) {
    YamlNode::Entry& entry = over.entries[0];
    if (list.IsNull()) {
      list.kind = YamlNode::Kind::kList;
      list.origin = over.origin;
    }
    size_t index = 0;
    if (!list.IsList() || !absl::SimpleAtoi(entry.key, &index) || index > list.items.size()) {
      return Error(over.origin, absl::StrCat(path, ".", entry.key),
                   absl::StrCat(path, " has ", list.items.size(),
                                " entries, expected an index of 0 to ", list.items.size()));
    }
    if (index == list.items.size()) {
      list.items.push_back(std::move(entry.value));
    } else if (list.items[index].IsMap() && entry.value.IsMap()) {
      Merge(list.items[index], std::move(entry.value),
            IsSection(field) ? field.message_type() : nullptr, absl::StrCat(path, ".", entry.key));
    } else {
      list.items[index] = std::move(entry.value);
    }
  }

  RecipeTree& tree_;
};

}  // namespace

absl::StatusOr<std::string> ReadRecipeFile(const std::string& path) {
  std::error_code error;
  const fs::file_status file = fs::status(path, error);
  if (file.type() == fs::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path, ": there is no such file"));
  }
  if (fs::is_directory(file))
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", path, ": it is a folder"));
  std::ifstream stream(path, std::ios::binary);
  if (!stream)
    return absl::PermissionDeniedError(
        absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  std::string text(kMaxRecipeBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(stream.gcount()));
  return text;
}

RecipeTree ReadRecipeTree(absl::string_view text, const std::string& name,
                          const std::vector<std::string>& overrides) {
  RecipeTree tree;
  tree.file = {std::make_shared<const std::string>(name), 1, 1};
  TreeReader reader(tree);
  tree.root = reader.ReadFile(text, tree.file, {});
  for (const std::string& override_text : overrides) reader.Override(override_text);
  return tree;
}

}  // namespace shoal
