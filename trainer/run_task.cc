#include "trainer/run_task.h"

#include <c10/util/Exception.h>

#include "checkpoint/agreement.h"
#include "checkpoint/export.h"
#include "core/status.h"
#include "trainer/report.h"
#include "trainer/sample.h"
#include "trainer/training_run.h"

namespace shoal {

RunPaths::RunPaths(const std::string& output_dir)
    : root(output_dir),
      metrics(JoinPath(output_dir, "metrics.jsonl")),
      resolved_recipe(JoinPath(output_dir, "recipe.resolved.yaml")),
      tensorboard(JoinPath(output_dir, "tensorboard")),
      checkpoints(JoinPath(output_dir, "checkpoints")),
      exported(JoinPath(output_dir, "export")),
      report(JoinPath(output_dir, "report.html")),
      samples(JoinPath(output_dir, "samples.txt")) {}

namespace {

// What follows training: the Hugging Face folder, text from it, the report.
absl::Status Finish(const LoadedRecipe& recipe, Communicator& world,
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
    finished = Guarded([&]() -> absl::Status {
      SHOAL_RETURN_IF_ERROR(
          PrintSamples(recipe.proto.sample(), recipe.proto.run().seed(), environment.files, paths));
      return WriteReport(environment.files, {paths.root}, paths.report);
    });
    environment.log.Info(absl::StrCat("report    ", paths.report));
    if (recipe.proto.checkpoint().export_hf() == CheckpointSection::final) {
      environment.log.Info(absl::StrCat("export    ", paths.exported));
    }
  }
  return Agree(world, finished);
}

absl::Status Run(const LoadedRecipe& recipe, Communicator& world,
                 const TaskEnvironment& environment) {
  SHOAL_ASSIGN_OR_RETURN(const std::unique_ptr<TrainingRun> run,
                         TrainingRun::Build(recipe, world, environment));
  if (run->complete()) {
    environment.log.Info(
        absl::StrCat("complete  step ", run->num_steps(), " is trained and saved"));
  } else {
    SHOAL_RETURN_IF_ERROR(run->Train());
  }
  return Finish(recipe, world, environment);
}

}  // namespace

absl::Status RunTask(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment) {
  try {
    return Run(recipe, world, environment);
  } catch (const CommError& error) {
    return absl::UnavailableError(error.what());
  } catch (const c10::Error& error) {
    return absl::InternalError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "out of memory: lower training.per_device_train_batch_size, raise zero.stage or use more "
        "ranks");
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace shoal
