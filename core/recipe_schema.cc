#include "core/recipe_schema.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/nearest_name.h"
#include "core/recipe.pb.h"
#include "core/recipe_aliases.h"
#include "core/recipe_options.pb.h"
#include "core/status.h"

namespace shoal {
namespace {

std::string BoundText(double value) {
  return value == std::floor(value) && std::fabs(value) < 1e15
             ? absl::StrCat(static_cast<int64_t>(value))
             : NumberText(value);
}

std::string ScalarTypeName(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT:
      return "a number";
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::StrCat("one of ", absl::StrJoin(EnumYamlNames(*field.enum_type()), ", "));
    case FieldDescriptor::CPPTYPE_STRING:
      return "text";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return IsFreeForm(field) ? "a map of keys and values" : "a section of keys and values";
    default:
      return "a whole number";
  }
}

// Every section (path -> message) of the schema; lists of sections are left out.
void CollectSections(const MessageDescriptor& message, const std::string& path,
                     std::map<std::string, const MessageDescriptor*>& sections) {
  sections[path] = &message;
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    if (!IsSection(field) || field.is_repeated()) continue;
    CollectSections(*field.message_type(),
                    path.empty() ? field.name() : absl::StrCat(path, ".", field.name()), sections);
  }
}

}  // namespace

std::string RecipeRange::ToString() const {
  const bool low_given = std::isfinite(low), high_given = std::isfinite(high);
  if (low_given && high_given && low == high) return absl::StrCat("equal to ", BoundText(low));
  if (low_given && high_given && !low_open && !high_open) {
    return absl::StrCat("between ", BoundText(low), " and ", BoundText(high));
  }
  const std::string lower = absl::StrCat(low_open ? "above " : "of at least ", BoundText(low));
  const std::string upper = absl::StrCat(high_open ? "below " : "at most ", BoundText(high));
  return low_given && high_given ? absl::StrCat(lower, " and ", upper)
         : low_given             ? lower
                                 : absl::StrCat(high_open ? "" : "of ", upper);
}

RecipeRange ParseRange(const std::string& text) {
  RecipeRange range{0, 0, false, false};
  std::vector<std::string> bounds = absl::StrSplit(text, ", ");
  SHOAL_CHECK(bounds.size() == 2 && bounds[0].size() > 1 && bounds[1].size() > 1)
      << "range " << text;
  range.low_open = bounds[0].front() == '(';
  range.high_open = bounds[1].back() == ')';
  const bool read = absl::SimpleAtod(bounds[0].substr(1), &range.low) &&
                    absl::SimpleAtod(bounds[1].substr(0, bounds[1].size() - 1), &range.high);
  SHOAL_CHECK(read) << "range " << text;
  return range;
}

std::optional<RecipeRange> RangeOf(const FieldDescriptor& field) {
  const std::string& text = field.options().GetExtension(range);
  if (text.empty()) return std::nullopt;
  return ParseRange(text);
}

bool IsFreeForm(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
         field.message_type()->full_name() == "google.protobuf.Struct";
}

bool IsSection(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !IsFreeForm(field);
}

bool IsRequired(const FieldDescriptor& field) { return field.options().GetExtension(required); }

std::string EnumYamlName(const google::protobuf::EnumValueDescriptor& value) {
  const std::string& name = value.options().GetExtension(yaml_name);
  return name.empty() ? value.name() : name;
}

std::vector<std::string> EnumYamlNames(const google::protobuf::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(EnumYamlName(*type.value(i)));
  return names;
}

std::vector<std::string> FieldNames(const MessageDescriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::string TypeName(const FieldDescriptor& field) {
  if (!field.is_repeated()) return ScalarTypeName(field);
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return "a list of texts";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "a list of sections";
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::StrCat("a list of ", absl::StrJoin(EnumYamlNames(*field.enum_type()), ", "));
    default:
      return "a list of numbers";
  }
}

std::string Expectation(const FieldDescriptor& field) {
  const std::optional<RecipeRange> range = RangeOf(field);
  return range ? absl::StrCat(TypeName(field), " ", range->ToString()) : TypeName(field);
}

std::string DefaultText(const FieldDescriptor& field) {
  if (!field.has_default_value()) return "";
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return field.default_value_bool() ? "true" : "false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberText(field.default_value_double());
    case FieldDescriptor::CPPTYPE_FLOAT:
      return NumberText(field.default_value_float());
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumYamlName(*field.default_value_enum());
    case FieldDescriptor::CPPTYPE_STRING:
      return field.default_value_string();
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(field.default_value_int32());
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(field.default_value_int64());
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(field.default_value_uint32());
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(field.default_value_uint64());
    default:
      return "";
  }
}

std::string NumberText(double value) {
  char buffer[64];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
  // YAML 1.1 readers take 1e-05 for text: 1.0e-05.
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && !absl::StrContains(text, '.')) text.insert(exponent, ".0");
  return text;
}

const FieldDescriptor* FindRecipeField(absl::string_view path) {
  const MessageDescriptor* message = Recipe::descriptor();
  const FieldDescriptor* field = nullptr;
  for (absl::string_view name : absl::StrSplit(path, '.')) {
    field = message == nullptr ? nullptr : message->FindFieldByName(std::string(name));
    if (field == nullptr) return nullptr;
    message = IsSection(*field) ? field->message_type() : nullptr;
  }
  return field;
}

std::string UnknownKeyHint(const MessageDescriptor& message, const std::string& path,
                           const std::string& name) {
  const std::string prefix = path.empty() ? "" : absl::StrCat(path, ".");
  if (const size_t dot = name.rfind('.');
      dot != std::string::npos && path.empty() && FindRecipeField(name) != nullptr) {
    return absl::StrCat("keys are not dotted in a file, expected ", name.substr(0, dot), ": {",
                        name.substr(dot + 1), ": ...}");
  }
  const std::vector<std::string> names = FieldNames(message);
  std::string nearest = NearestName(name, names);
  if (!nearest.empty()) return absl::StrCat("did you mean ", prefix, nearest, "?");
  // The right name in the wrong section, then a near alias, then a near name in any section.
  std::map<std::string, const MessageDescriptor*> sections;
  CollectSections(*Recipe::descriptor(), "", sections);
  const auto depth = [](const std::string& section) {
    return std::count(section.begin(), section.end(), '.');
  };
  const std::string* highest = nullptr;
  for (const auto& [section, descriptor] : sections) {
    if (section == path || descriptor->FindFieldByName(name) == nullptr) continue;
    if (!highest || depth(section) < depth(*highest)) highest = &section;
  }
  if (highest)
    return absl::StrCat("did you mean ", *highest, highest->empty() ? "" : ".", name, "?");
  if (const std::string canonical = NearestAlias(name); !canonical.empty()) {
    return absl::StrCat("did you mean ", canonical, "?");
  }
  return absl::StrCat("expected one of ", absl::StrJoin(names, ", "));
}

}  // namespace shoal
