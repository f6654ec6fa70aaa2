// The recipe's schema (recipe.proto) in the terms of a recipe: names, types, ranges and defaults as
// users write and read them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>

#include "absl/strings/string_view.h"

namespace shoal {

using FieldDescriptor = google::protobuf::FieldDescriptor;
using MessageDescriptor = google::protobuf::Descriptor;

// The values that a field's (range) option admits.
struct RecipeRange {
  double low, high;
  bool low_open, high_open;

  bool Contains(double value) const {
    return (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);
  }
  std::string ToString() const;  // After "a number": "of at least 0 and below 1"
};

// "[0, 1)" -> range. The schema is ours: a malformed one is a broken invariant.
RecipeRange ParseRange(const std::string& text);
std::optional<RecipeRange> RangeOf(const FieldDescriptor& field);

// A section (a message of ours) rather than a scalar or a free-form map.
bool IsSection(const FieldDescriptor& field);
// A map whose keys the schema does not name (model.config).
bool IsFreeForm(const FieldDescriptor& field);
bool IsRequired(const FieldDescriptor& field);

std::string EnumYamlName(const google::protobuf::EnumValueDescriptor& value);
std::vector<std::string> EnumYamlNames(const google::protobuf::EnumDescriptor& type);

// The names of a message's fields, in the order of the schema.
std::vector<std::string> FieldNames(const MessageDescriptor& message);

// What a value of the field is: "a whole number", "one of adamw, sgd", "a list of sections".
std::string TypeName(const FieldDescriptor& field);
// Its type and range: "a number between 0 and 1".
std::string Expectation(const FieldDescriptor& field);
// The default as it would be written, or "" if there is none.
std::string DefaultText(const FieldDescriptor& field);

// The shortest decimal text that reads back to `value`, a number in every version of YAML.
std::string NumberText(double value);

// The field that a dotted path of names leads to ("zero.stage"), or null. List indices are left
// out: data.train.path.
const FieldDescriptor* FindRecipeField(absl::string_view path);

// "did you mean training.max_steps?", "expected one of ..." for a name that section `message` (at
// `path`,
// "" for the root) does not have.
std::string UnknownKeyHint(const MessageDescriptor& message, const std::string& path,
                           const std::string& name);

}  // namespace shoal
