#include "launch/plan_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status.h"
#include "launch/doctor_machine.h"
#include "trainer/plan/plan_report.h"
#include "trainer/plan/recipe_plan.h"
#include "trainer/plan/suggest.h"
#include "trainer/recipe_options.h"

namespace shoal {
namespace {

struct PlanOptions {
  std::string recipe;
  std::vector<std::string> overrides;
  int ranks = 1;
  std::string hardware = "cpu";
  bool suggest = false;
  bool json = false;
};

absl::StatusOr<Hardware> HardwareOf(const PlanOptions& options, const Recipe& recipe,
                                    FileSystem& files) {
  const at::ScalarType dtype = ComputeDtype(recipe);
  if (options.hardware == "cpu") {
    return MeasureThisMachine({.ranks = options.ranks, .cores = UsableCores(), .dtype = dtype});
  }
  SHOAL_ASSIGN_OR_RETURN(Hardware hardware, FindHardware(files, options.hardware));
  if (hardware.MatrixFlopsOf(dtype) > 0) return hardware;
  return absl::InvalidArgumentError(
      absl::StrCat(options.hardware, ": matrix_flops_per_second has no ",
                   Dtype_Name(recipe.model().dtype()), ", which the recipe computes in"));
}

absl::Status Print(const PlanOptions& options, const std::string& text, const std::string& json) {
  std::fputs((options.json ? json : text).c_str(), stdout);
  return absl::OkStatus();
}

absl::Status RunPlan(const PlanOptions& options) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const LoadedRecipe recipe, LoadRecipe(options.recipe, options.overrides));
  for (const std::string& notice : recipe.notices) std::fprintf(stderr, "%s\n", notice.c_str());
  SHOAL_ASSIGN_OR_RETURN(const ModelConfig config, PlannedModel(recipe, files));
  SHOAL_ASSIGN_OR_RETURN(const Hardware hardware, HardwareOf(options, recipe.proto, files));
  Planner planner = PlannerOf(recipe, config);
  SHOAL_ASSIGN_OR_RETURN(const Model model, BuildModel(config));
  PlanFrame frame{
      .recipe = options.recipe,
      .model = DescribeModel(config, ComputeDtype(recipe.proto), model.num_parameters()),
      .batch_equation = "",
      .hardware = hardware};
  if (!recipe.proto.model().has_name_or_path() && recipe.proto.tokenizer().has_train() &&
      recipe.proto.model().config().fields().count("vocab_size") == 0) {
    absl::StrAppend(&frame.model, ", vocab_size ", config.vocab_size,
                    " (tokenizer.train's; a small text gives fewer)");
  }
  if (options.suggest) {
    SHOAL_ASSIGN_OR_RETURN(const Suggestions suggestions,
                           SuggestMeshes(recipe, options.ranks, hardware, planner));
    return Print(options, SuggestionsText(frame, suggestions), SuggestionsJson(frame, suggestions));
  }
  SHOAL_ASSIGN_OR_RETURN(const Plan plan, PlanRecipe(recipe, options.ranks, hardware, planner));
  SHOAL_ASSIGN_OR_RETURN(const BatchPlan batch,
                         PlanBatch(recipe, plan.job.mesh.replicate * plan.job.mesh.shard));
  frame.batch_equation = batch.equation;
  return Print(options, PlanText(frame, plan), PlanJson(frame, plan));
}

}  // namespace

void AddPlanCommand(CommandLine& line) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command =
      line.Add("plan", "Tell what a recipe holds, sends and takes on so many ranks, starting none",
               "shoal plan recipes/quickstart.yaml -n 8 parallelism.tensor_parallel=2\n"
               "shoal plan recipes/quickstart.yaml -n 1024 --hardware h100 --suggest\n"
               "shoal plan recipes/quickstart.yaml -n 16 --hardware my-cluster.yaml --json",
               [options] { return RunPlan(*options); });
  command->add_option("recipe", options->recipe, "The recipe, a YAML file")->required();
  command->add_option("overrides", options->overrides,
                      "key.sub=value texts that override the recipe");
  command->add_option("-n,--ranks", options->ranks, "Ranks to plan for")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  command
      ->add_option("--hardware", options->hardware,
                   absl::StrCat("A machine (", absl::StrJoin(KnownHardware(), ", "),
                                "), or a YAML file that describes one (trainer/plan/hardware.h); "
                                "cpu: this one, measured, shared by all ranks"))
      ->capture_default_str();
  command->add_flag("--suggest", options->suggest,
                    "Rank all meshes that fit by the estimated time of a step");
  command->add_flag("--json", options->json, "Print one JSON object");
}

}  // namespace shoal
