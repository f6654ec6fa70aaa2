#include "core/offload_validation.h"

#include "absl/strings/str_cat.h"
#include "core/recipe_schema.h"
#include "core/rlhf_validation.h"

namespace shoal {

void ValidateOffload(const LoadedRecipe& recipe, const ReportError& error) {
  const ZeroSection& zero = recipe.proto.zero();
  const struct {
    const char* key;
    bool on_disk;
  } keys[] = {
      {"zero.offload_optimizer", zero.offload_optimizer() == disk},
      {"zero.offload_parameters", zero.offload_parameters() == disk},
      {"training.offload_activations", recipe.proto.training().offload_activations() == disk}};
  bool any = false;
  for (const auto& [key, on_disk] : keys) {
    any |= on_disk;
    if (on_disk && !IsPlainTraining(recipe.proto)) {
      error(key, absl::StrCat("got disk, but task ", Task_Name(recipe.proto.task()),
                              " reads and writes weights and states between steps, expected none: "
                              "disk is for tasks pretrain, sft, dpo and reward"));
    }
  }
  if (zero.offload_parameters() == disk && zero.stage() < 3) {
    error("zero.offload_parameters",
          absl::StrCat("got disk, but with zero.stage ", zero.stage(),
                       " every rank computes with all weights from where they are, expected none, "
                       "or zero.stage: 3"));
  }
  const ParallelismSection::PipelineSchedule schedule =
      recipe.proto.parallelism().pipeline_schedule();
  const bool halves = schedule == ParallelismSection::zb_h1 || schedule == ParallelismSection::zbv;
  if (recipe.proto.training().offload_activations() == disk && halves) {
    error("training.offload_activations",
          absl::StrCat(
              "got disk, but parallelism.pipeline_schedule ",
              EnumYamlName(
                  *ParallelismSection::PipelineSchedule_descriptor()->FindValueByNumber(schedule)),
              " keeps what a block's second half of the backward pass reads in memory, "
              "expected none, or another schedule"));
  }
  if (zero.has_offload_dir() && zero.offload_dir().empty())
    error("zero.offload_dir", "empty, expected a folder");
  if (zero.has_offload_dir() && !any) {
    error("zero.offload_dir",
          "given, but nothing is offloaded: set zero.offload_optimizer, zero.offload_parameters "
          "or training.offload_activations to disk");
  }
}

}  // namespace shoal
