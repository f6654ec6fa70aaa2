#include "launch/export_command.h"

#include <cstdio>
#include <memory>
#include <string>

#include "checkpoint/export.h"
#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

struct ExportCommandOptions {
  std::string source;
  std::string directory;
  std::string dtype;
  bool force = false;
};

absl::StatusOr<std::optional<at::ScalarType>> ParseDtype(const std::string& name) {
  if (name.empty()) return std::optional<at::ScalarType>();
  if (name == "float32") return std::optional(at::kFloat);
  if (name == "bfloat16") return std::optional(at::kBFloat16);
  if (name == "float16") return std::optional(at::kHalf);
  if (name == "float64") return std::optional(at::kDouble);
  return absl::InvalidArgumentError(
      absl::StrCat("dtype ", name, " is none of float32, bfloat16, float16, float64"));
}

absl::Status Export(const ExportCommandOptions& options) {
  PosixFileSystem files;
  const std::unique_ptr<Communicator> comm = MakeSingleRankCommunicator();
  CheckpointExport request = {
      .source = options.source, .directory = options.directory, .overwrite = options.force};
  SHOAL_ASSIGN_OR_RETURN(request.dtype, ParseDtype(options.dtype));
  request.warn = [](const std::string& line) {
    std::fprintf(stderr, "warning: %s\n", line.c_str());
  };
  const absl::StatusOr<std::string> step = ExportCheckpoint(files, *comm, request);
  if (absl::IsAlreadyExists(step.status())) {
    return absl::AlreadyExistsError(
        absl::StrCat(step.status().message(), ", or replace it with --force"));
  }
  SHOAL_RETURN_IF_ERROR(step.status());
  std::fprintf(stderr, "%s exported to %s\n", step->c_str(), options.directory.c_str());
  return absl::OkStatus();
}

}  // namespace

void AddExportCommand(CommandLine& line) {
  auto options = std::make_shared<ExportCommandOptions>();
  CLI::App* command = line.Add(
      "export", "Write a run's weights as a Hugging Face folder that transformers opens",
      "shoal export runs/quickstart exported                       # the newest checkpoint\n"
      "shoal export runs/quickstart/checkpoints/step-400 exported --dtype bfloat16",
      [options] { return Export(*options); });
  command->add_option("source", options->source, "A run's folder, or one of its checkpoints")
      ->required();
  command->add_option("directory", options->directory, "The folder to write")->required();
  command->add_option("--dtype", options->dtype,
                      "float32, bfloat16, float16 or float64. Default: the recipe's model.dtype");
  command->add_flag("--force", options->force, "Replace the folder if it is there");
}

}  // namespace shoal
