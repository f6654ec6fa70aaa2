#include "launch/run_command.h"

#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <thread>

#include "core/log.h"
#include "core/recipe.h"
#include "core/recipe_validation.h"
#include "core/status.h"
#include "kernels/threads.h"
#include "launch/launcher.h"
#include "launch/ranks.h"
#include "launch/recipe_inputs.h"
#include "launch/run_lock.h"
#include "launch/run_task.h"
#include "trainer/recipe_options.h"

namespace shoal {
namespace {

struct RunOptions {
  std::string recipe;
  std::vector<std::string> overrides;
  int ranks = 0;
};

// Everything that can be told before a rank starts.
absl::StatusOr<LoadedRecipe> CheckedRecipe(const RunOptions& options, int ranks) {
  SHOAL_ASSIGN_OR_RETURN(LoadedRecipe recipe, LoadRecipe(options.recipe, options.overrides));
  SHOAL_RETURN_IF_ERROR(RecipeErrorsToStatus(CheckRecipeInputs(recipe)));
  SHOAL_RETURN_IF_ERROR(CheckBuiltFor(DeviceRequestOf(recipe.proto)));
  SHOAL_ASSIGN_OR_RETURN(const MeshPlan mesh, PlanMesh(recipe, ranks));
  SHOAL_RETURN_IF_ERROR(PlanBatch(recipe, mesh.data_parallel_ranks).status());
  return recipe;
}

absl::Status RunOnThisRank(const LoadedRecipe& recipe, const RankEnvironment& environment) {
  SHOAL_ASSIGN_OR_RETURN(
      const std::unique_ptr<Communicator> world,
      JoinRanks(environment, CommOptionsOf(recipe.proto), DeviceRequestOf(recipe.proto)));
  const Logger log(world->rank(), world->size());
  for (const std::string& notice : recipe.notices) log.Info(notice);
  if (const auto line = DescribeIdleGpus(recipe.proto, *world)) log.Info(*line);
  PosixFileSystem files;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const TaskEnvironment task{.files = files,
                             .log = log,
                             .version = SHOAL_VERSION,
                             .threads_per_rank = GetNumThreads(),
                             .preparation_threads = cores,
                             .rewrite_line = isatty(STDOUT_FILENO) == 1};
  absl::Status status;
  if (world->rank() == 0) {
    const absl::StatusOr<RunLock> lock = RunLock::Take(recipe.proto.run().output_dir());
    status = lock.ok() ? RunTask(recipe, *world, task) : lock.status();
  } else {
    status = RunTask(recipe, *world, task);
  }
  EndJobOnError(*world, status, StatusToExitCode(status));
  return status;
}

}  // namespace

void AddRunCommand(CommandLine& line, int argc, const char* const* argv) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command =
      line.Add("run", "Do what a recipe asks: train, evaluate, save, export",
               "shoal run recipes/quickstart.yaml -n 2\n"
               "shoal run recipes/quickstart.yaml -n 4 training.max_steps=20 zero.stage=1\n"
               "mpirun -np 4 shoal run recipes/quickstart.yaml",
               [options, argc, argv]() -> absl::Status {
                 SHOAL_ASSIGN_OR_RETURN(const RankEnvironment environment,
                                        ReadRankEnvironment(std::getenv, options->ranks));
                 const bool launch = MustLaunch(environment, options->ranks);
                 const absl::StatusOr<LoadedRecipe> recipe =
                     CheckedRecipe(*options, launch ? options->ranks : environment.size);
                 if (!recipe.ok()) return HeldBack(environment, recipe.status());
                 if (launch) std::exit(LaunchRanks(argc, argv, options->ranks));
                 return RunOnThisRank(*recipe, environment);
               });
  command->add_option("recipe", options->recipe, "The recipe (YAML)")->required();
  command->add_option("overrides", options->overrides, "key.sub=value, over the recipe's own");
  command
      ->add_option(
          "-n,--ranks", options->ranks,
          "Ranks to start on this host (default: 1, or the ranks that mpirun or srun started)")
      ->check(CLI::PositiveNumber);
}

}  // namespace shoal
