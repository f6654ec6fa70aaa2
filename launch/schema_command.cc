#include "launch/schema_command.h"

#include <cstdio>
#include <memory>
#include <string>

#include "core/recipe_reference.h"
#include "core/status.h"

namespace shoal {
namespace {

struct SchemaOptions {
  std::string key;
  bool json = false;
  bool markdown = false;
};

absl::Status PrintSchema(const SchemaOptions& options) {
  std::string text;
  if (options.json) {
    text = RecipeJsonSchema() + "\n";
  } else if (options.markdown) {
    text = RecipeReferenceMarkdown();
  } else {
    SHOAL_ASSIGN_OR_RETURN(text, RecipeReferenceText(options.key));
  }
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddSchemaCommand(CommandLine& line) {
  auto options = std::make_shared<SchemaOptions>();
  CLI::App* command =
      line.Add("schema", "Print what a recipe may say: keys, types, defaults, ranges",
               "shoal schema optimizer\n"
               "shoal schema --json > recipe.schema.json   # for an editor's completion",
               [options] { return PrintSchema(*options); });
  CLI::Option* key = command->add_option("key", options->key,
                                         "A key or section, such as zero.stage; default: all");
  CLI::Option* json = command->add_flag("--json", options->json, "As a JSON Schema");
  command->add_flag("--markdown", options->markdown, "As the page docs/recipe-reference.md")
      ->excludes(json)
      ->excludes(key);
  json->excludes(key);
}

}  // namespace shoal
