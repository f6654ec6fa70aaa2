// A Recipe as YAML text that reads back to an equal one.
#include <google/protobuf/message.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "core/random.h"
#include "core/recipe.h"
#include "core/recipe_schema.h"
#include "core/recipe_yaml.h"

namespace shoal {
namespace {

using google::protobuf::ListValue;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::Struct;
using google::protobuf::Value;

// Text of the schema may hold references; a ${ that is left is meant as it is.
std::string SchemaText(const std::string& text) {
  return QuotedYaml(absl::StrReplaceAll(text, {{"${", "$${"}}));
}

std::string FreeText(const Value& value);

// In flow style, keys in order.
std::string FreeMap(const Struct& map) {
  std::map<std::string, std::string> parts;
  for (const auto& [key, value] : map.fields())
    parts[key] = absl::StrCat(QuotedYaml(key), ": ", FreeText(value));
  return absl::StrCat(
      "{",
      absl::StrJoin(parts, ", ", [](std::string* out, const auto& part) { *out += part.second; }),
      "}");
}

std::string FreeText(const Value& value) {
  switch (value.kind_case()) {
    case Value::kBoolValue:
      return value.bool_value() ? "true" : "false";
    case Value::kNumberValue: {
      const double number = value.number_value();
      const bool whole =
          number == static_cast<double>(static_cast<int64_t>(number)) && std::abs(number) < 9e15;
      return whole && !(number == 0 && std::signbit(number))
                 ? absl::StrCat(static_cast<int64_t>(number))
                 : NumberText(number);
    }
    case Value::kStringValue:
      return QuotedYaml(value.string_value());
    case Value::kStructValue:
      return FreeMap(value.struct_value());
    case Value::kListValue:
      return absl::StrCat(
          "[",
          absl::StrJoin(value.list_value().values(), ", ",
                        [](std::string* out, const Value& item) { *out += FreeText(item); }),
          "]");
    default:
      return "null";
  }
}

class Printer {
 public:
  std::string Print(const Message& message, int indent) {
    Section(message, indent);
    return std::move(out_);
  }

 private:
  void Section(const Message& message, int indent) {
    const MessageDescriptor& descriptor = *message.GetDescriptor();
    for (int i = 0; i < descriptor.field_count(); ++i) Field(message, *descriptor.field(i), indent);
  }

  void Field(const Message& message, const FieldDescriptor& field, int indent) {
    const Reflection& reflection = *message.GetReflection();
    const std::string key = absl::StrCat(std::string(indent, ' '), field.name(), ":");
    if (field.is_repeated()) return List(message, field, key, indent);
    if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      if (!reflection.HasField(message, &field) && !field.has_default_value()) return;
      absl::StrAppend(&out_, key, " ", Scalar(message, field), "\n");
      return;
    }
    if (!reflection.HasField(message, &field)) return;
    const Message& inner = reflection.GetMessage(message, &field);
    if (IsFreeForm(field)) {
      absl::StrAppend(&out_, key, " ", FreeMap(static_cast<const Struct&>(inner)), "\n");
      return;
    }
    const std::string body = Printer().Print(inner, indent + 2);
    absl::StrAppend(&out_, key, body.empty() ? " {}\n" : absl::StrCat("\n", body));
  }

  void List(const Message& message, const FieldDescriptor& field, const std::string& key,
            int indent) {
    const Reflection& reflection = *message.GetReflection();
    const int size = reflection.FieldSize(message, &field);
    if (size == 0) {
      absl::StrAppend(&out_, key, " []\n");
      return;
    }
    absl::StrAppend(&out_, key, "\n");
    for (int i = 0; i < size; ++i) {
      const std::string dash = absl::StrCat(std::string(indent + 2, ' '), "- ");
      if (IsSection(field)) {
        const std::string body =
            Printer().Print(reflection.GetRepeatedMessage(message, &field, i), indent + 4);
        absl::StrAppend(&out_, dash, body.empty() ? "{}\n" : body.substr(indent + 4));
      } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
        absl::StrAppend(&out_, dash, EnumYamlName(*reflection.GetRepeatedEnum(message, &field, i)),
                        "\n");
      } else {
        absl::StrAppend(&out_, dash, SchemaText(reflection.GetRepeatedString(message, &field, i)),
                        "\n");
      }
    }
  }

  static std::string Scalar(const Message& message, const FieldDescriptor& field) {
    const Reflection& reflection = *message.GetReflection();
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_BOOL:
        return reflection.GetBool(message, &field) ? "true" : "false";
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return NumberText(reflection.GetDouble(message, &field));
      case FieldDescriptor::CPPTYPE_ENUM:
        return EnumYamlName(*reflection.GetEnum(message, &field));
      case FieldDescriptor::CPPTYPE_INT32:
        return absl::StrCat(reflection.GetInt32(message, &field));
      case FieldDescriptor::CPPTYPE_INT64:
        return absl::StrCat(reflection.GetInt64(message, &field));
      case FieldDescriptor::CPPTYPE_UINT64:
        return absl::StrCat(reflection.GetUInt64(message, &field));
      default:
        return SchemaText(reflection.GetString(message, &field));
    }
  }

  std::string out_;
};

}  // namespace

std::string LoadedRecipe::ResolvedYaml() const {
  // Sections of other tasks would be refused when this is read.
  Recipe printed = proto;
  const Task task = proto.task();
  if (task != federated) printed.clear_federated();
  if (task != grpo && task != ppo) printed.clear_rlhf();
  if (task != dpo) printed.clear_preference();
  if (task != reward) printed.clear_reward_model();
  return Printer().Print(printed, 0);
}

std::string LoadedRecipe::Hash() const {
  return absl::StrFormat("%016x", StreamId(ResolvedYaml()));
}

}  // namespace shoal
