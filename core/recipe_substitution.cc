#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/recipe_reader.h"
#include "core/recipe_schema.h"

namespace shoal {
namespace {

constexpr size_t kMaxTextBytes = size_t{64} << 10;
constexpr int kMaxReferences =
    10'000;  // Expanded in all: what bounds the work of nested references

class Substituter {
 public:
  Substituter(YamlNode& root, std::vector<RecipeError>& errors) : root_(root), errors_(errors) {}

  void Section(YamlNode& map, const MessageDescriptor& message, const std::string& path) {
    for (int i = 0; i < message.field_count(); ++i) {
      const FieldDescriptor& field = *message.field(i);
      const std::string key = path.empty() ? field.name() : absl::StrCat(path, ".", field.name());
      YamlNode::Entry* entry = map.Find(field.name());
      if (entry == nullptr || entry->value.IsNull()) {
        AddDefault(map, field, key);
      } else {
        Value(entry->value, field, key);
      }
    }
  }

 private:
  void Value(YamlNode& node, const FieldDescriptor& field, const std::string& key) {
    if (IsFreeForm(field)) return;
    if (node.IsScalar()) Scalar(node, key);
    if (node.IsMap() && IsSection(field)) Section(node, *field.message_type(), key);
    for (size_t i = 0; i < node.items.size(); ++i)
      Value(node.items[i], field, absl::StrCat(key, ".", i));
  }

  // Defaults such as runs/${run.name}; sections that are not there get theirs too.
  void AddDefault(YamlNode& map, const FieldDescriptor& field, const std::string& key) {
    if (field.is_repeated() || IsFreeForm(field)) return;
    YamlNode node;
    node.is_default = true;
    node.origin = root_.origin;
    if (IsSection(field)) {
      if (absl::StrContains(key, '.')) return;  // Only top sections are always there
      node.kind = YamlNode::Kind::kMap;
      Section(node, *field.message_type(), key);
      if (node.entries.empty()) return;
    } else {
      node.kind = YamlNode::Kind::kScalar;
      node.text = DefaultText(field);
      if (!absl::StrContains(node.text, "${")) return;
      Scalar(node, key);
    }
    if (YamlNode::Entry* entry = map.Find(field.name())) {
      entry->value = std::move(node);
    } else {
      map.entries.push_back({field.name(), {}, std::move(node)});
    }
  }

  void Scalar(YamlNode& node, const std::string& key) {
    if (!absl::StrContains(node.text, "${")) return;
    std::set<std::string> open = {key};
    std::string message;
    node.text = Expanded(node.text, open, message);
    node.substituted = true;
    if (!message.empty()) {
      errors_.push_back({node.origin, key, message});
      node.refused = true;
    }
  }

  // `text` with its references replaced; `open` are the keys being expanded. The first problem ends
  // up in `message`, and then the result means nothing.
  std::string Expanded(const std::string& text, std::set<std::string>& open, std::string& message) {
    std::string out;
    for (size_t i = 0; i < text.size() && message.empty();) {
      if (out.size() > kMaxTextBytes)
        message = absl::StrCat("its references expand to more than ", kMaxTextBytes, " bytes");
      if (text.compare(i, 3, "$${") == 0) {
        out += "${";
        i += 3;
      } else if (text.compare(i, 2, "${") == 0) {
        const size_t end = text.find('}', i);
        if (end == std::string::npos) {
          message = "${ without its }, expected ${key.path} ($${ is a plain ${)";
          break;
        }
        out += Referred(text.substr(i + 2, end - i - 2), open, message);
        i = end + 1;
      } else {
        out += text[i++];
      }
    }
    return out;
  }

  std::string Referred(const std::string& key, std::set<std::string>& open, std::string& message) {
    if (++references_ > kMaxReferences) {
      message = absl::StrCat("more than ", kMaxReferences, " references to expand");
      return "";
    }
    const FieldDescriptor* field = FindRecipeField(key);
    if (field == nullptr) {
      message = absl::StrCat("${", key, "}: there is no such key");
      NameUnknown(key, message);
      return "";
    }
    if (field->is_repeated() || field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE ||
        InList(key)) {
      message =
          absl::StrCat("${", key, "}: expected a key with one value, this is ", TypeName(*field));
      return "";
    }
    if (!open.insert(key).second) {
      message = absl::StrCat("${", key, "} refers to itself");
      return "";
    }
    const YamlNode* node = &root_;
    for (absl::string_view name : absl::StrSplit(key, '.')) {
      const YamlNode::Entry* entry = node == nullptr ? nullptr : node->Find(name);
      node = entry == nullptr ? nullptr : &entry->value;
    }
    std::string text;
    if (node != nullptr && node->IsScalar()) {
      text = node->substituted ? node->text : Expanded(node->text, open, message);
    } else if (field->has_default_value()) {
      text = Expanded(DefaultText(*field), open, message);
    } else if (message.empty()) {
      message = absl::StrCat("${", key, "}: the key has no value");
    }
    open.erase(key);
    return text;
  }

  static bool InList(const std::string& key) {
    for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', dot + 1)) {
      if (FindRecipeField(key.substr(0, dot))->is_repeated()) return true;
    }
    return false;
  }

  static void NameUnknown(const std::string& key, std::string& message) {
    const size_t dot = key.rfind('.');
    const std::string section = dot == std::string::npos ? "" : key.substr(0, dot);
    const FieldDescriptor* field = section.empty() ? nullptr : FindRecipeField(section);
    const MessageDescriptor* owner = section.empty()                         ? Recipe::descriptor()
                                     : field != nullptr && IsSection(*field) ? field->message_type()
                                                                             : nullptr;
    if (owner == nullptr) return;
    absl::StrAppend(
        &message, ", ",
        UnknownKeyHint(*owner, section, dot == std::string::npos ? key : key.substr(dot + 1)));
  }

  YamlNode& root_;
  std::vector<RecipeError>& errors_;
  int references_ = 0;
};

}  // namespace

void SubstituteReferences(YamlNode& root, std::vector<RecipeError>& errors) {
  Substituter(root, errors).Section(root, *Recipe::descriptor(), "");
}

}  // namespace shoal
