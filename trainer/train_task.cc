#include "trainer/train_task.h"

#include "checkpoint/agreement.h"
#include "checkpoint/export.h"
#include "core/status.h"
#include "trainer/offload_setup.h"
#include "trainer/report.h"
#include "trainer/sample.h"
#include "trainer/training_run.h"

namespace shoal {

absl::Status FinishRun(const LoadedRecipe& recipe, Communicator& world,
                       const TaskEnvironment& environment) {
  const RunPaths paths(recipe.proto.run().output_dir());
  if (recipe.proto.checkpoint().export_hf() == CheckpointSection::final) {
    SHOAL_RETURN_IF_ERROR(
        ExportCheckpoint(environment.files, world,
                         {.source = paths.root,
                          .directory = paths.exported,
                          .dtype = std::nullopt,
                          .overwrite = true,
                          .warn = [&](const std::string& text) { environment.log.Warning(text); }})
            .status());
  }
  absl::Status finished = absl::OkStatus();
  if (world.rank() == 0) {
    RemoveOffloadFolder(recipe.proto);
    finished = Guarded([&]() -> absl::Status {
      SHOAL_RETURN_IF_ERROR(PrintSamples(recipe.proto.sample(), recipe.proto.run().seed(),
                                         environment.files, paths, world.device()));
      return WriteReport(environment.files, {paths.root}, paths.report);
    });
    environment.log.Info(absl::StrCat("report    ", paths.report));
    if (recipe.proto.checkpoint().export_hf() == CheckpointSection::final) {
      environment.log.Info(absl::StrCat("export    ", paths.exported));
    }
  }
  return Agree(world, finished);
}

absl::Status RunTraining(const LoadedRecipe& recipe, Communicator& world,
                         const TaskEnvironment& environment) {
  return RunToEnd<TrainingRun>(recipe, world, environment);
}

}  // namespace shoal
