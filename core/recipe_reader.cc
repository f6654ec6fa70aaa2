#include "core/recipe_reader.h"

#include <google/protobuf/message.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/nearest_name.h"
#include "core/recipe_aliases.h"
#include "core/recipe_schema.h"
#include "core/status.h"

namespace shoal {
namespace {

using google::protobuf::Message;
using google::protobuf::Struct;
using google::protobuf::Value;

constexpr int64_t kLargestExact = int64_t{1} << 53;  // Doubles hold every whole number up to here

// Is `text` a decimal number (12, -1.5, .5, 1e-5)? Not 0x10, 1_000, inf or nan.
bool IsDecimal(absl::string_view text) {
  size_t i = !text.empty() && (text[0] == '-' || text[0] == '+');
  size_t digits = 0;
  bool point = false;
  for (; i < text.size() && (absl::ascii_isdigit(text[i]) || (text[i] == '.' && !point)); ++i) {
    point = point || text[i] == '.';
    digits += text[i] != '.';
  }
  if (digits == 0) return false;
  if (i == text.size()) return true;
  if (text[i] != 'e' && text[i] != 'E') return false;
  ++i;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  return i < text.size() &&
         text.substr(i).find_first_not_of("0123456789") == absl::string_view::npos;
}

bool IsNonFiniteName(absl::string_view text) {
  std::string name = absl::AsciiStrToLower(text);
  if (!name.empty() && (name[0] == '-' || name[0] == '+')) name.erase(0, 1);
  if (!name.empty() && name[0] == '.') name.erase(0, 1);
  return name == "inf" || name == "infinity" || name == "nan";
}

// The finite number that decimal `text` says.
std::optional<double> ReadNumber(absl::string_view text) {
  double value = 0;
  if (!IsDecimal(text) || !absl::SimpleAtod(text, &value) || !std::isfinite(value))
    return std::nullopt;
  return value;
}

// The whole number that `text` says: digits, or any decimal number without a fraction that is exact
// (1e9).
template <typename Integer>
std::optional<Integer> ReadInteger(absl::string_view text) {
  if (!IsDecimal(text)) return std::nullopt;
  if (text[0] == '+') text.remove_prefix(1);
  Integer value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  double number = 0;
  const double limit =
      std::min(9007199254740992.0, static_cast<double>(std::numeric_limits<Integer>::max()));
  if (end == text.data() + text.size() || !absl::SimpleAtod(text, &number) ||
      std::floor(number) != number || std::fabs(number) > limit ||
      (number < 0 && !std::is_signed_v<Integer>)) {
    return std::nullopt;
  }
  return static_cast<Integer>(number);
}

class MessageReader {
 public:
  MessageReader(std::map<std::string, RecipeOrigin>& origins, std::vector<RecipeError>& errors)
      : origins_(origins), errors_(errors) {}

  void Section(const YamlNode& map, const std::string& path, Message& message) {
    const MessageDescriptor& descriptor = *message.GetDescriptor();
    for (const YamlNode::Entry& entry : map.entries) {
      const std::string key = Join(path, entry.key);
      const FieldDescriptor* field = descriptor.FindFieldByName(entry.key);
      if (field == nullptr) {
        errors_.push_back(
            {entry.origin, key,
             absl::StrCat("unknown key, ", UnknownKeyHint(descriptor, path, entry.key))});
        continue;
      }
      if (entry.value.IsNull() || entry.value.refused) continue;
      if (!entry.value.is_default) origins_[key] = entry.value.origin;
      field->is_repeated() ? List(entry.value, key, *field, message)
                           : One(entry.value, key, *field, message);
    }
    for (int i = 0; i < descriptor.field_count(); ++i) {
      const FieldDescriptor& field = *descriptor.field(i);
      const YamlNode::Entry* entry = map.Find(field.name());
      if (!IsRequired(field) || (entry != nullptr && !entry->value.IsNull())) continue;
      errors_.push_back({entry == nullptr ? map.origin : entry->origin, Join(path, field.name()),
                         absl::StrCat("missing, expected ", Expectation(field))});
    }
  }

 private:
  static std::string Join(const std::string& path, absl::string_view name) {
    return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
  }

  void WrongType(const YamlNode& value, const std::string& key, const std::string& expected) {
    if (value.is_default) return;  // The value that the default refers to is the error
    errors_.push_back(
        {value.origin, key, absl::StrCat("got ", Shown(value), ", expected ", expected)});
  }

  void List(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
            Message& message) {
    if (!value.IsList()) {
      const std::string hint = value.IsScalar() && !IsSection(field)
                                   ? absl::StrCat(", such as [", value.text.substr(0, 40), "]")
                                   : "";
      return WrongType(value, key, absl::StrCat(TypeName(field), hint));
    }
    for (size_t i = 0; i < value.items.size(); ++i) {
      const YamlNode& item = value.items[i];
      const std::string item_key = absl::StrCat(key, ".", i);
      if (item.refused) continue;
      if (item.IsNull()) {
        errors_.push_back({item.origin, item_key, "an empty entry in a list"});
        continue;
      }
      origins_[item_key] = item.origin;
      One(item, item_key, field, message);
    }
  }

  // Sets a single field, or adds to a repeated one.
  void One(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
           Message& message) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE)
      return SubMessage(value, key, field, message);
    if (!value.IsScalar()) {
      return WrongType(value, key,
                       field.is_repeated() ? "a single value in each entry" : Expectation(field));
    }
    const bool text_wanted = field.cpp_type() == FieldDescriptor::CPPTYPE_STRING ||
                             field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM;
    if (value.quoted && !value.substituted && !text_wanted) {
      return WrongType(value, key, absl::StrCat(Expectation(field), " without quotes"));
    }
    Scalar(value, key, field, message);
  }

  void SubMessage(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
                  Message& message) {
    if (!value.IsMap()) {
      const bool source = field.message_type()->FindFieldByName("path") != nullptr;
      return WrongType(value, key,
                       source              ? "a section, such as {path: ...}"
                       : IsFreeForm(field) ? TypeName(field)
                                           : "a section of keys and values");
    }
    const google::protobuf::Reflection& reflection = *message.GetReflection();
    Message* inner = field.is_repeated() ? reflection.AddMessage(&message, &field)
                                         : reflection.MutableMessage(&message, &field);
    if (IsFreeForm(field)) return FreeMap(value, key, static_cast<Struct&>(*inner));
    Section(value, key, *inner);
  }

  void Scalar(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
              Message& message) {
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_BOOL:
        return Bool(value, key, field, message);
      case FieldDescriptor::CPPTYPE_STRING:
        return Text(value, key, field, message);
      case FieldDescriptor::CPPTYPE_ENUM:
        return Enum(value, key, field, message);
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return Number(
            value, key, field, ReadNumber(value.text), message,
            [&](const auto& reflection, double x) { reflection.SetDouble(&message, &field, x); });
      case FieldDescriptor::CPPTYPE_INT32:
        return Number(
            value, key, field, ReadInteger<int32_t>(value.text), message,
            [&](const auto& reflection, int32_t x) { reflection.SetInt32(&message, &field, x); });
      case FieldDescriptor::CPPTYPE_INT64:
        return Number(
            value, key, field, ReadInteger<int64_t>(value.text), message,
            [&](const auto& reflection, int64_t x) { reflection.SetInt64(&message, &field, x); });
      case FieldDescriptor::CPPTYPE_UINT64:
        return Number(
            value, key, field, ReadInteger<uint64_t>(value.text), message,
            [&](const auto& reflection, uint64_t x) { reflection.SetUInt64(&message, &field, x); });
      default:
        SHOAL_CHECK(false) << field.full_name() << " has a type that recipes do not use";
    }
  }

  template <typename T, typename Set>
  void Number(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
              std::optional<T> number, Message& message, Set set) {
    SHOAL_CHECK(!field.is_repeated())
        << field.full_name() << ": lists of numbers are not in the schema yet";
    const std::optional<RecipeRange> range = RangeOf(field);
    if (!number) {
      std::string expected = Expectation(field);
      if (std::is_same_v<T, uint64_t> && !range) expected += " between 0 and 18446744073709551615";
      const std::optional<double> any = ReadNumber(value.text);
      if (std::is_same_v<T, int32_t> && any && *any > 2147483647.0)
        expected = "a whole number of at most 2147483647";
      if (std::is_same_v<T, int64_t> && any && *any >= 9.2e18)
        expected = "a whole number of at most 9223372036854775807";
      if (IsNonFiniteName(value.text) || (IsDecimal(value.text) && !any))
        expected =
            absl::StrCat("a finite number", range ? " " : "", range ? range->ToString() : "");
      return WrongType(value, key, expected);
    }
    if (range && !range->Contains(static_cast<double>(*number)))
      return WrongType(value, key, Expectation(field));
    set(*message.GetReflection(), *number);
  }

  void Bool(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
            Message& message) {
    const std::string& text = value.text;
    const bool is_true = text == "true" || text == "True" || text == "TRUE";
    if (!is_true && text != "false" && text != "False" && text != "FALSE")
      return WrongType(value, key, "true or false");
    message.GetReflection()->SetBool(&message, &field, is_true);
  }

  void Text(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
            Message& message) {
    if (value.text.find('\0') != std::string::npos)
      return WrongType(value, key, "text without a zero byte");
    field.is_repeated() ? message.GetReflection()->AddString(&message, &field, value.text)
                        : message.GetReflection()->SetString(&message, &field, value.text);
  }

  void Enum(const YamlNode& value, const std::string& key, const FieldDescriptor& field,
            Message& message) {
    const std::string wanted = CanonicalValue(key, value.text);
    const google::protobuf::EnumDescriptor& type = *field.enum_type();
    for (int i = 0; i < type.value_count(); ++i) {
      if (EnumYamlName(*type.value(i)) != wanted) continue;
      return field.is_repeated()
                 ? message.GetReflection()->AddEnum(&message, &field, type.value(i))
                 : message.GetReflection()->SetEnum(&message, &field, type.value(i));
    }
    const std::vector<std::string> names = EnumYamlNames(type);
    const std::string nearest = NearestName(value.text, names);
    WrongType(value, key,
              absl::StrCat("one of ", absl::StrJoin(names, ", "),
                           nearest.empty() ? "" : absl::StrCat(", did you mean ", nearest, "?")));
  }

  // Free-form values follow YAML 1.2's core schema.
  void FreeMap(const YamlNode& map, const std::string& path, Struct& out) {
    for (const YamlNode::Entry& entry : map.entries) {
      const std::string key = Join(path, entry.key);
      origins_[key] = entry.value.origin;
      if (entry.key.find('\0') != std::string::npos) {
        errors_.push_back({entry.origin, path, "a key with a zero byte"});
        continue;
      }
      FreeValue(entry.value, key, (*out.mutable_fields())[entry.key]);
    }
  }

  void FreeValue(const YamlNode& value, const std::string& key, Value& out) {
    if (value.IsMap()) {
      FreeMap(value, key, *out.mutable_struct_value());
    } else if (value.IsList()) {
      google::protobuf::ListValue& list = *out.mutable_list_value();
      for (size_t i = 0; i < value.items.size(); ++i) {
        const std::string item_key = absl::StrCat(key, ".", i);
        origins_[item_key] = value.items[i].origin;
        FreeValue(value.items[i], item_key, *list.add_values());
      }
    } else if (value.IsNull()) {
      out.set_null_value(google::protobuf::NULL_VALUE);
    } else {
      FreeScalar(value, key, out);
    }
  }

  void FreeScalar(const YamlNode& value, const std::string& key, Value& out) {
    const std::string& text = value.text;
    if (value.quoted) {
      out.set_string_value(text);
    } else if (text == "true" || text == "True" || text == "TRUE" || text == "false" ||
               text == "False" || text == "FALSE") {
      out.set_bool_value(text[0] == 't' || text[0] == 'T');
    } else if (!IsDecimal(text)) {
      if (IsNonFiniteName(text) && absl::StrContains(text, '.'))
        return WrongType(value, key, "a finite number");
      out.set_string_value(text);
    } else if (const std::optional<double> number = ReadNumber(text)) {
      // A double holds it; a whole number that it would round is refused, not changed.
      const std::optional<int64_t> whole = ReadInteger<int64_t>(text);
      const bool digits_only = text.find_first_of(".eE") == std::string::npos;
      if (digits_only && (!whole || *whole > kLargestExact || *whole < -kLargestExact)) {
        return WrongType(value, key, "a whole number of at most 2^53");
      }
      out.set_number_value(*number);
    } else {
      WrongType(value, key, "a finite number");
    }
  }

  std::map<std::string, RecipeOrigin>& origins_;
  std::vector<RecipeError>& errors_;
};

}  // namespace

std::string Shown(const YamlNode& value) {
  switch (value.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kList:
      return absl::StrCat("a list of ", value.items.size());
    case YamlNode::Kind::kMap:
      return "a map";
    case YamlNode::Kind::kScalar:
      break;
  }
  std::string text = value.text;
  if (text.size() > 60) {
    size_t end = 60;
    while (end > 0 && (text[end] & 0xC0) == 0x80) --end;  // Not inside a character
    text = absl::StrCat(text.substr(0, end), "...");
  }
  const bool odd = value.quoted || text.empty() || text.find_first_of(" ,:") != std::string::npos;
  return odd ? absl::StrCat("\"", text, "\"") : text;
}

void ReadMessage(const YamlNode& root, Recipe& recipe, std::map<std::string, RecipeOrigin>& origins,
                 std::vector<RecipeError>& errors) {
  MessageReader(origins, errors).Section(root, "", recipe);
  const MessageDescriptor& descriptor = *Recipe::descriptor();
  for (int i = 0; i < descriptor.field_count(); ++i) {
    if (IsSection(*descriptor.field(i)))
      recipe.GetReflection()->MutableMessage(&recipe, descriptor.field(i));
  }
}

}  // namespace shoal
