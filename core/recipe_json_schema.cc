#include <cmath>

#include <nlohmann/json.hpp>

#include "core/recipe.pb.h"
#include "core/recipe_reference.h"
#include "core/recipe_schema.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

class SchemaWriter {
 public:
  SchemaWriter() {
    for (const RecipeDoc& doc : RecipeReference()) comments_[doc.field] = doc.comment;
  }

  Json Section(const MessageDescriptor& message) const {
    Json properties = Json::object();
    Json required = Json::array();
    for (int i = 0; i < message.field_count(); ++i) {
      const FieldDescriptor& field = *message.field(i);
      properties[field.name()] = Field(field);
      if (IsRequired(field)) required.push_back(field.name());
    }
    Json schema = {{"type", "object"}, {"additionalProperties", false}, {"properties", properties}};
    if (!required.empty()) schema["required"] = required;
    return schema;
  }

 private:
  Json Field(const FieldDescriptor& field) const {
    Json schema = field.is_repeated() ? Json{{"type", "array"}, {"items", One(field)}} : One(field);
    const auto comment = comments_.find(&field);
    if (comment != comments_.end() && !comment->second.empty())
      schema["description"] = comment->second;
    if (field.has_default_value()) schema["default"] = Default(field);
    return schema;
  }

  Json One(const FieldDescriptor& field) const {
    if (IsFreeForm(field)) return {{"type", "object"}};
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return Section(*field.message_type());
      case FieldDescriptor::CPPTYPE_BOOL:
        return {{"type", "boolean"}};
      case FieldDescriptor::CPPTYPE_ENUM:
        return {{"enum", EnumYamlNames(*field.enum_type())}};
      case FieldDescriptor::CPPTYPE_STRING:
        return {{"type", "string"}};
      default:
        return Number(field);
    }
  }

  static Json Number(const FieldDescriptor& field) {
    Json schema = {
        {"type", field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE ? "number" : "integer"}};
    const std::optional<RecipeRange> range = RangeOf(field);
    if (!range) return schema;
    const auto bound = [](double value) { return Json::parse(NumberText(value)); };
    if (std::isfinite(range->low))
      schema[range->low_open ? "exclusiveMinimum" : "minimum"] = bound(range->low);
    if (std::isfinite(range->high))
      schema[range->high_open ? "exclusiveMaximum" : "maximum"] = bound(range->high);
    return schema;
  }

  static Json Default(const FieldDescriptor& field) {
    const bool text = field.cpp_type() == FieldDescriptor::CPPTYPE_STRING ||
                      field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM;
    return text ? Json(DefaultText(field)) : Json::parse(DefaultText(field));
  }

  std::map<const FieldDescriptor*, std::string> comments_;
};

}  // namespace

std::string RecipeJsonSchema() {
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "Shoal recipe"}};
  schema.update(SchemaWriter().Section(*Recipe::descriptor()));
  schema["properties"]["extends"] = {
      {"type", "string"},
      {"description",
       "A recipe, relative to this file, that this one is merged over; lists replace."}};
  return schema.dump(2);
}

}  // namespace shoal
