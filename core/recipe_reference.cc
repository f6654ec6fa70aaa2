#include "core/recipe_reference.h"

#include <google/protobuf/descriptor.pb.h>

#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "core/recipe.pb.h"
#include "core/recipe_schema.h"
#include "core/status.h"

namespace shoal {
namespace embedded {
extern const char recipe_descriptor[];
extern const unsigned long recipe_descriptor_size;
}  // namespace embedded

namespace {

using google::protobuf::DescriptorPool;
using google::protobuf::SourceLocation;

// The schema with its comments; the generated classes' descriptors have none.
class CommentedSchema {
 public:
  CommentedSchema() {
    google::protobuf::FileDescriptorSet files;
    const bool parsed = files.ParseFromArray(embedded::recipe_descriptor,
                                             static_cast<int>(embedded::recipe_descriptor_size));
    SHOAL_CHECK(parsed) << "the embedded schema is broken";
    for (const auto& file : files.file())
      SHOAL_CHECK(pool_.BuildFile(file) != nullptr) << file.name();
  }

  std::string CommentOf(const FieldDescriptor& field) const {
    return Paragraph(pool_.FindFieldByName(field.full_name()));
  }
  std::string CommentOf(const google::protobuf::EnumValueDescriptor& value) const {
    return Paragraph(
        pool_.FindEnumTypeByName(value.type()->full_name())->FindValueByName(value.name()));
  }

 private:
  template <typename Descriptor>
  static std::string Paragraph(const Descriptor* descriptor) {
    SourceLocation location;
    if (descriptor == nullptr || !descriptor->GetSourceLocation(&location)) return "";
    std::string text = location.leading_comments + location.trailing_comments;
    absl::RemoveExtraAsciiWhitespace(&text);
    return text;
  }

  DescriptorPool pool_;
};

void Collect(const MessageDescriptor& message, const std::string& path,
             const CommentedSchema& schema, std::vector<RecipeDoc>& docs) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const std::string key = path.empty() ? field.name() : absl::StrCat(path, ".", field.name());
    docs.push_back({key, schema.CommentOf(field), &field, {}});
    for (int v = 0;
         field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM && v < field.enum_type()->value_count();
         ++v) {
      docs.back().value_comments.push_back(schema.CommentOf(*field.enum_type()->value(v)));
    }
    if (IsSection(field)) Collect(*field.message_type(), key, schema, docs);
  }
}

// "required", "default 42" or "".
std::string DefaultNote(const FieldDescriptor& field) {
  if (IsRequired(field)) return "required";
  if (!field.has_default_value()) return "";
  const std::string text = DefaultText(field);
  return absl::StrCat("default ", text.empty() ? "\"\"" : text);
}

std::string EntryText(const RecipeDoc& doc) {
  const std::string note = DefaultNote(*doc.field);
  std::string text =
      absl::StrCat(doc.path, ": ", Expectation(*doc.field), note.empty() ? "" : ", ", note, "\n");
  if (!doc.comment.empty()) absl::StrAppend(&text, "    ", doc.comment, "\n");
  for (size_t i = 0; i < doc.value_comments.size(); ++i) {
    absl::StrAppend(&text, "    ", EnumYamlName(*doc.field->enum_type()->value(i)), ": ",
                    doc.value_comments[i], "\n");
  }
  return text;
}

std::string Cell(const std::string& text) { return absl::StrReplaceAll(text, {{"|", "\\|"}}); }

std::string MarkdownRow(const RecipeDoc& doc) {
  std::string meaning = doc.comment;
  for (size_t i = 0; i < doc.value_comments.size(); ++i) {
    absl::StrAppend(&meaning, "<br>`", EnumYamlName(*doc.field->enum_type()->value(i)),
                    "`: ", doc.value_comments[i]);
  }
  const std::string type = doc.field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM
                               ? (doc.field->is_repeated() ? "a list of names" : "a name")
                               : Expectation(*doc.field);
  const std::string value = IsRequired(*doc.field) ? "required" : DefaultText(*doc.field);
  return absl::StrCat(
      "| `", doc.path, "` | ", Cell(type), " | ",
      value.empty() || IsRequired(*doc.field) ? value : absl::StrCat("`", Cell(value), "`"), " | ",
      Cell(meaning), " |\n");
}

}  // namespace

std::vector<RecipeDoc> RecipeReference() {
  std::vector<RecipeDoc> docs;
  Collect(*Recipe::descriptor(), "", CommentedSchema(), docs);
  return docs;
}

absl::StatusOr<std::string> RecipeReferenceText(absl::string_view path) {
  const std::string wanted(path);
  std::string text;
  for (const RecipeDoc& doc : RecipeReference()) {
    if (wanted.empty() || doc.path == wanted || absl::StartsWith(doc.path, wanted + "."))
      text += EntryText(doc);
  }
  if (!text.empty()) return text;
  const size_t dot = wanted.rfind('.');
  std::string section = dot == std::string::npos ? "" : wanted.substr(0, dot);
  const FieldDescriptor* owner = section.empty() ? nullptr : FindRecipeField(section);
  const bool known = owner != nullptr && IsSection(*owner);
  const std::string name = section.empty() ? wanted : wanted.substr(dot + 1);
  return absl::InvalidArgumentError(absl::StrCat(
      wanted, ": unknown key, ",
      known ? UnknownKeyHint(*owner->message_type(), section, name)
            : UnknownKeyHint(*Recipe::descriptor(), "",
                             section.empty() ? name : wanted.substr(0, wanted.find('.')))));
}

std::string RecipeReferenceMarkdown() {
  std::string page =
      "# Recipe reference\n\n"
      "Made by `shoal schema --markdown` from `core/recipe.proto`; do not edit. A key that is not "
      "given has its\n"
      "default. `extends: base.yaml` (relative to the file; deep-merged, the file wins, lists "
      "replace) may stand\n"
      "beside the sections, `${key.path}` in a value stands for another key's, and `key.sub=value` "
      "on the command\n"
      "line comes last.\n";
  for (const RecipeDoc& doc : RecipeReference()) {
    const bool top = !absl::StrContains(doc.path, '.');
    if (top) {
      absl::StrAppend(&page, "\n## ", doc.path, "\n\n");
      if (IsSection(*doc.field)) absl::StrAppend(&page, doc.comment, "\n\n");
      absl::StrAppend(&page, "| key | value | default | meaning |\n|---|---|---|---|\n");
      if (IsSection(*doc.field)) continue;
    }
    page += MarkdownRow(doc);
  }
  return page;
}

}  // namespace shoal
