#include "trainer/run_folder.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "core/metrics_console.h"
#include "core/metrics_jsonl.h"
#include "core/status.h"
#include "core/tensorboard_writer.h"

namespace shoal {
namespace {

bool Reports(const LoggingSection& logging, LoggingSection::Sink sink) {
  const auto& to = logging.report_to();
  return to.empty() || std::find(to.begin(), to.end(), sink) != to.end();
}

}  // namespace

absl::Status WriteResolvedRecipe(const LoadedRecipe& recipe, const TaskEnvironment& environment,
                                 Communicator& ranks) {
  absl::Status written = absl::OkStatus();
  if (ranks.rank() == 0) {
    written = Guarded([&]() -> absl::Status {
      const RunPaths paths(recipe.proto.run().output_dir());
      SHOAL_RETURN_IF_ERROR(CreateDirectories(environment.files, paths.root));
      return WriteFileAtomically(environment.files, paths.resolved_recipe, recipe.ResolvedYaml());
    });
  }
  return Agree(ranks, written);
}

absl::StatusOr<std::vector<std::unique_ptr<MetricsSink>>> OpenMetricsSinks(
    const LoadedRecipe& recipe, const TaskEnvironment& environment, Communicator& ranks,
    const RunSteps& steps) {
  const LoggingSection& logging = recipe.proto.logging();
  const RunPaths paths(recipe.proto.run().output_dir());
  std::vector<std::unique_ptr<MetricsSink>> sinks;
  absl::Status opened = absl::OkStatus();
  const auto add = [&](absl::StatusOr<std::unique_ptr<MetricsSink>> sink) {
    if (!sink.ok())
      opened = sink.status();
    else
      sinks.push_back(std::move(*sink));
  };
  if (ranks.rank() == 0) {
    if (Reports(logging, LoggingSection::jsonl_file))
      add(OpenJsonlSink(environment.files, paths.metrics, steps.done));
    if (Reports(logging, LoggingSection::tensorboard)) {
      add(OpenTensorboardSink(environment.files, paths.tensorboard, steps.done,
                              recipe.ResolvedYaml()));
    }
    if (Reports(logging, LoggingSection::console)) {
      add(MakeConsoleSink(stdout,
                          {.max_steps = steps.all, .rewrite_line = environment.rewrite_line}));
    }
  }
  SHOAL_RETURN_IF_ERROR(Agree(ranks, opened));
  return sinks;
}

absl::StatusOr<std::string> CheckpointToResume(const LoadedRecipe& recipe,
                                               const TaskEnvironment& environment,
                                               Communicator& ranks) {
  const std::string& resume = recipe.proto.checkpoint().resume();
  if (resume != "auto" && resume != "never") return resume;
  const RunPaths paths(recipe.proto.run().output_dir());
  std::vector<std::string> skipped;
  SHOAL_ASSIGN_OR_RETURN(const std::optional<std::string> newest,
                         FindNewestValid(environment.files, ranks, paths.checkpoints, &skipped));
  for (const std::string& line : skipped) {
    if (ranks.rank() == 0) environment.log.Warning(line);
  }
  if (newest && resume == "never") {
    return recipe.ErrorAt("checkpoint.resume",
                          absl::StrCat("never, but ", *newest,
                                       " is there: choose another run.output_dir or remove it"));
  }
  return newest.value_or("");
}

}  // namespace shoal
