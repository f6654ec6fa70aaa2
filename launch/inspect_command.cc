#include "launch/inspect_command.h"

#include <cstdio>
#include <memory>
#include <string>

#include "launch/inspection.h"

namespace shoal {
namespace {

struct InspectOptions {
  std::string path;
  bool json = false;
  bool verify = false;
  bool recipe = false;
};

absl::Status RunInspect(const InspectOptions& options) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const Inspection inspection, Inspect(files, options.path, options.verify));
  if (options.recipe) {
    if (!inspection.state) {
      return absl::FailedPreconditionError(
          absl::StrCat(options.path, " is no checkpoint: it holds no recipe"));
    }
    std::fputs(inspection.state->recipe_yaml().c_str(), stdout);
  } else if (options.json) {
    std::puts(InspectionJson(inspection).c_str());
  } else {
    std::fputs(InspectionText(inspection).c_str(), stdout);
  }
  return absl::OkStatus();
}

}  // namespace

void AddInspectCommand(CommandLine& line) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = line.Add(
      "inspect", "Show what is in a checkpoint, a run, a safetensors file or a Hugging Face folder",
      "shoal inspect runs/quickstart                       # its newest checkpoint\n"
      "shoal inspect runs/quickstart/checkpoints/step-400 --verify\n"
      "shoal inspect model.safetensors --json",
      [options] { return RunInspect(*options); });
  command
      ->add_option("path", options->path,
                   "A checkpoint, a run's folder, a safetensors file or a model's folder")
      ->required();
  auto* json = command->add_flag("--json", options->json, "Print one JSON object");
  command->add_flag("--verify", options->verify,
                    "Read every byte and compare it with its checksum");
  command
      ->add_flag("--recipe", options->recipe,
                 "Print the recipe that the checkpoint was trained by, as YAML")
      ->excludes(json);
}

}  // namespace shoal
