#include "launch/check_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/recipe.h"
#include "core/recipe_validation.h"
#include "core/status.h"
#include "launch/recipe_inputs.h"
#include "parallel/pipeline/picture.h"
#include "parallel/pipeline/simulate.h"
#include "trainer/recipe_options.h"

namespace shoal {
namespace {

struct CheckOptions {
  std::string recipe;
  std::vector<std::string> overrides;
  int ranks = 1;
  bool resolved = false;
};

// The pipeline on a virtual clock, a backward pass costing two forward ones.
absl::StatusOr<std::string> DrawPipeline(const LoadedRecipe& recipe, const BatchPlan& batch) {
  const absl::StatusOr<Schedule> schedule =
      PipelineScheduleOf(recipe.proto.parallelism(), batch.accumulation);
  if (!schedule.ok())
    return recipe.ErrorAt("parallelism.pipeline_schedule", schedule.status().message());
  SHOAL_ASSIGN_OR_RETURN(const Simulation simulation, Simulate(*schedule, {}));
  return DrawSchedule(*schedule, simulation);
}

// One rank count's errors beside those of the files, and the equations if there are none.
absl::Status Check(const CheckOptions& options) {
  SHOAL_ASSIGN_OR_RETURN(const LoadedRecipe recipe, LoadRecipe(options.recipe, options.overrides));
  for (const std::string& notice : recipe.notices) std::fprintf(stderr, "%s\n", notice.c_str());
  SHOAL_RETURN_IF_ERROR(RecipeErrorsToStatus(CheckRecipeInputs(recipe)));
  SHOAL_ASSIGN_OR_RETURN(const MeshPlan mesh, PlanMesh(recipe, options.ranks));
  SHOAL_ASSIGN_OR_RETURN(const BatchPlan batch, PlanBatch(recipe, mesh.data_parallel_ranks));
  if (options.resolved) {
    std::fputs(recipe.ResolvedYaml().c_str(), stdout);
    return absl::OkStatus();
  }
  const int64_t seq_length = recipe.proto.data().seq_length();
  std::string text =
      absl::StrCat(options.recipe, ": ok\n", mesh.equation, "\n", batch.equation, "\n");
  absl::StrAppend(&text, "tokens a step ", batch.global * seq_length, " = global_batch_size ",
                  batch.global, " * seq_length ", seq_length, "\n");
  if (mesh.pipeline > 1) {
    SHOAL_ASSIGN_OR_RETURN(const std::string picture, DrawPipeline(recipe, batch));
    absl::StrAppend(&text, picture);
  }
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

void AddCheckCommand(CommandLine& line) {
  auto options = std::make_shared<CheckOptions>();
  CLI::App* command = line.Add(
      "check", "Check a recipe: all errors at once, or the batch, mesh and pipeline it makes",
      "shoal check recipes/quickstart.yaml -n 4 zero.stage=3\n"
      "shoal check recipes/quickstart.yaml --resolved > all-values.yaml",
      [options] { return Check(*options); });
  command->add_option("recipe", options->recipe, "The recipe, a YAML file")->required();
  command->add_option("overrides", options->overrides,
                      "key.sub=value texts that override the recipe");
  command->add_option("-n,--ranks", options->ranks, "Ranks to check the mesh and the batch for")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  command->add_flag("--resolved", options->resolved,
                    "Print every value, defaults too, as a recipe");
}

}  // namespace shoal
