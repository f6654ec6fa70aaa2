#include "launch/parity_command.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoint/agreement.h"
#include "core/file_system.h"
#include "core/log.h"
#include "core/recipe.h"
#include "core/recipe_validation.h"
#include "core/status.h"
#include "kernels/threads.h"
#include "launch/launcher.h"
#include "launch/ranks.h"
#include "launch/recipe_inputs.h"
#include "trainer/parity.h"
#include "trainer/parity_record.h"
#include "trainer/recipe_options.h"

namespace shoal {
namespace {

struct ParityOptions {
  std::string recipe;
  std::vector<std::string> rest;  // B's recipe, if its first has no '='; overrides of both
  std::vector<std::string> overrides_a;
  std::vector<std::string> overrides_b;
  int ranks_a = 1;
  int ranks_b = 0;  // 0: as many
  int64_t steps = 3;
  std::optional<double> tolerance;
  std::string keep;
  std::string record;  // The folder of a side, whose rank this process is
};

// One of the two runs.
struct Side {
  char name;
  std::string path;
  std::vector<std::string> overrides;
  int ranks;
  LoadedRecipe recipe;
};

absl::StatusOr<Side> MakeSide(char name, const std::string& path,
                              std::vector<std::string> overrides,
                              const std::vector<std::string>& own, int ranks) {
  overrides.insert(overrides.end(), own.begin(), own.end());
  SHOAL_ASSIGN_OR_RETURN(LoadedRecipe recipe, LoadRecipe(path, overrides));
  SHOAL_RETURN_IF_ERROR(RecipeErrorsToStatus(CheckRecipeInputs(recipe)));
  for (const std::string& notice : recipe.notices) std::fprintf(stderr, "%s\n", notice.c_str());
  return Side{name, path, std::move(overrides), ranks, std::move(recipe)};
}

absl::StatusOr<std::string> MakeFolder(FileSystem& files, const std::string& keep) {
  if (!keep.empty()) {
    SHOAL_RETURN_IF_ERROR(CreateDirectories(files, keep));
    SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.List(keep));
    if (names.empty()) return keep;
    return absl::FailedPreconditionError(
        absl::StrCat("--keep ", keep, " is not empty: choose another folder"));
  }
  const char* temporary = std::getenv("TMPDIR");
  std::string path = JoinPath(temporary != nullptr && *temporary != '\0' ? temporary : "/tmp",
                              "shoal-parity-XXXXXX");
  if (mkdtemp(path.data()) == nullptr)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make a folder ", path));
  return path;
}

std::string FolderOf(const std::string& root, char side) {
  return JoinPath(root, side == 'A' ? "a" : "b");
}

// Runs this program again as the side's ranks; their exit code.
int RecordInRanks(const Side& side, const std::string& root, int64_t steps) {
  std::vector<std::string> title = {side.path};
  title.insert(title.end(), side.overrides.begin(), side.overrides.end());
  std::fprintf(stderr, "%c         %s on %d %s\n", side.name, absl::StrJoin(title, " ").c_str(),
               side.ranks, side.ranks == 1 ? "rank" : "ranks");
  std::vector<std::string> arguments = {"shoal", "parity", side.path};
  arguments.insert(arguments.end(), side.overrides.begin(), side.overrides.end());
  arguments.insert(arguments.end(),
                   {"--record", FolderOf(root, side.name), "--steps", absl::StrCat(steps)});
  std::vector<const char*> argv;
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return LaunchRanks(static_cast<int>(argv.size()), argv.data(), side.ranks);
}

// While this lives, signals that would end the process wait, so that it can remove its folder.
class HeldSignals {
 public:
  HeldSignals() {
    sigemptyset(&signals_);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals_, signal);
    sigprocmask(SIG_BLOCK, &signals_, &before_);
  }
  ~HeldSignals() { sigprocmask(SIG_SETMASK, &before_, nullptr); }

  bool pending() const {
    sigset_t waiting;
    sigpending(&waiting);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
      if (sigismember(&waiting, signal) == 1) return true;
    }
    return false;
  }

 private:
  sigset_t signals_, before_;
};

absl::StatusOr<Verdict> CompareRuns(FileSystem& files, const std::string& root, double tolerance,
                                    const HeldSignals& signals) {
  const std::string a = FolderOf(root, 'A'), b = FolderOf(root, 'B');
  SHOAL_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, RecordedSteps(files, a));
  SHOAL_ASSIGN_OR_RETURN(const std::vector<int64_t> steps_b, RecordedSteps(files, b));
  if (steps != steps_b) {
    return absl::FailedPreconditionError(absl::StrCat("A ran steps ", absl::StrJoin(steps, ", "),
                                                      ", B ", absl::StrJoin(steps_b, ", ")));
  }
  std::vector<StepComparison> comparisons;
  for (const int64_t step : steps) {
    SHOAL_ASSIGN_OR_RETURN(StepComparison comparison,
                           CompareStep(files, a, b, step, [&] { return signals.pending(); }));
    std::printf("%s\n", StepTable(comparison).c_str());
    std::fflush(stdout);
    comparisons.push_back(std::move(comparison));
  }
  return Judge(comparisons, tolerance);
}

absl::Status TellVerdict(const Verdict& verdict, double tolerance, const Side& a, const Side& b) {
  if (verdict.within) {
    std::printf("%s\n", verdict.text.c_str());
    return absl::OkStatus();
  }
  const bool any_order =
      !a.recipe.proto.run().deterministic() || !b.recipe.proto.run().deterministic();
  return absl::AbortedError(absl::StrCat(
      verdict.text,
      tolerance == 0 && any_order
          ? " (sums in any order: only run.deterministic=true makes runs equal to the last bit)"
          : ""));
}

absl::Status RunParity(const ParityOptions& options) {
  SHOAL_ASSIGN_OR_RETURN(const RankEnvironment environment, ReadRankEnvironment(std::getenv, 0));
  if (environment.started()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "parity starts the ranks of both runs itself: leave ", environment.launcher, " out"));
  }
  std::vector<std::string> common = options.rest;
  std::string path_b = options.recipe;
  if (!common.empty() && !absl::StrContains(common[0], '=')) {
    path_b = common[0];
    common.erase(common.begin());
  }
  SHOAL_ASSIGN_OR_RETURN(
      const Side a, MakeSide('A', options.recipe, common, options.overrides_a, options.ranks_a));
  SHOAL_ASSIGN_OR_RETURN(const Side b,
                         MakeSide('B', path_b, common, options.overrides_b,
                                  options.ranks_b > 0 ? options.ranks_b : options.ranks_a));
  SHOAL_RETURN_IF_ERROR(CheckComparable(a.recipe, a.ranks, b.recipe, b.ranks));
  const double tolerance =
      options.tolerance.value_or(ParityTolerance(a.recipe.proto, b.recipe.proto));

  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const std::string root, MakeFolder(files, options.keep));
  absl::StatusOr<Verdict> verdict;
  int exit_code = RecordInRanks(a, root, options.steps);
  if (exit_code == 0) exit_code = RecordInRanks(b, root, options.steps);
  {
    const HeldSignals signals;
    if (exit_code == 0)
      verdict = Guarded([&] { return CompareRuns(files, root, tolerance, signals); });
    if (options.keep.empty()) {
      const absl::Status removed = RemoveRecursively(files, root);
      if (!removed.ok()) Logger().Warning(removed.message());
    }
  }
  if (exit_code != 0) std::exit(exit_code);
  if (!verdict.ok()) return verdict.status();
  return TellVerdict(*verdict, tolerance, a, b);
}

// What a rank of one side does.
absl::Status RecordOnThisRank(const ParityOptions& options) {
  SHOAL_ASSIGN_OR_RETURN(const RankEnvironment environment, ReadRankEnvironment(std::getenv, 0));
  SHOAL_ASSIGN_OR_RETURN(LoadedRecipe recipe, LoadRecipe(options.recipe, options.rest));
  // Both sides find the data that the first has prepared.
  recipe.proto.mutable_run()->set_output_dir(JoinPath(ParentPath(options.record), "run"));
  SHOAL_ASSIGN_OR_RETURN(
      const std::unique_ptr<Communicator> world,
      JoinRanks(environment, CommOptionsOf(recipe.proto), DeviceRequestOf(recipe.proto)));
  const Logger log(world->rank(), world->size());
  PosixFileSystem files;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const absl::Status status = RecordRun(recipe, *world,
                                        {.files = files,
                                         .log = log,
                                         .version = "",
                                         .threads_per_rank = GetNumThreads(),
                                         .preparation_threads = cores},
                                        options.record, options.steps);
  EndJobOnError(*world, status, StatusToExitCode(status));
  return status;
}

}  // namespace

void AddParityCommand(CommandLine& line) {
  auto options = std::make_shared<ParityOptions>();
  CLI::App* command = line.Add(
      "parity", "Train the same few steps on two layouts, and name the first tensor that differs",
      "shoal parity R.yaml -n 1 --ranks-b 4 model.dtype=float64 "
      "--b zero.stage=3 parallelism.tensor_parallel=2\n"
      "shoal parity R.yaml -n 2 run.deterministic=true --tolerance 0 "
      "--a zero.stage=0 --b zero.stage=3\n"
      "shoal parity float32.yaml bfloat16.yaml -n 2 --steps 5 --keep /data/parity\n\n"
      "Compared are loss and gradient norm and, tensor by tensor, the reduced gradients, the\n"
      "weights and the optimizer's states: |A - B| relative to the tensor's largest element.\n"
      "Exit code 0: all within the tolerance; 77: not. On disk ($TMPDIR, or --keep) each step of\n"
      "each run takes the bytes of weights, gradients and states. In bfloat16 the sign of a\n"
      "gradient near zero may flip, which AdamW turns into a whole step of that weight.",
      [options] {
        return options->record.empty() ? RunParity(*options) : RecordOnThisRank(*options);
      });
  command->add_option("recipe", options->recipe, "A's recipe (YAML)")->required();
  command->add_option("rest", options->rest,
                      "B's recipe (default: A's), then key.sub=value over both recipes' own");
  command->add_option("--a", options->overrides_a, "key.sub=value ... over A's recipe alone");
  command->add_option("--b", options->overrides_b, "key.sub=value ... over B's recipe alone");
  command->add_option("-n,--ranks", options->ranks_a, "Ranks of A")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--ranks-b", options->ranks_b, "Ranks of B (default: as many as A)")
      ->check(CLI::PositiveNumber);
  command->add_option("--steps", options->steps, "Steps to compare")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command
      ->add_option(
          "--tolerance", options->tolerance,
          "Largest relative difference that passes; 0: equal to the last bit. Default, by "
          "the coarser model.dtype: float64 1e-10, float32 2e-4, bfloat16, float16 and what "
          "is sent as int8 5e-2")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--keep", options->keep,
                      "An empty or new folder for what is recorded; stays");
  command->add_option("--record", options->record)->group("");
}

}  // namespace shoal
