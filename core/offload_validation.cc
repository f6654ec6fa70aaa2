#include "core/offload_validation.h"

#include "absl/strings/str_cat.h"
#include "core/recipe_schema.h"
#include "core/rlhf_validation.h"

namespace shoal {
namespace {

std::string NameOf(Offload place) {
  return EnumYamlName(*Offload_descriptor()->FindValueByNumber(place));
}

}  // namespace

void ValidateOffload(const LoadedRecipe& recipe, const ReportError& error) {
  const ZeroSection& zero = recipe.proto.zero();
  const Offload activations = recipe.proto.training().offload_activations();
  const struct {
    const char* key;
    Offload place;
  } keys[] = {{"zero.offload_optimizer", zero.offload_optimizer()},
              {"zero.offload_parameters", zero.offload_parameters()},
              {"training.offload_activations", activations}};
  bool any_on_disk = false;
  for (const auto& [key, place] : keys) {
    if (place == no_offload) continue;
    any_on_disk |= place == disk;
    if (!IsPlainTraining(recipe.proto)) {
      error(key, absl::StrCat("got ", NameOf(place), ", but task ", Task_Name(recipe.proto.task()),
                              " reads and writes weights and states between steps, expected none: ",
                              NameOf(place), " is for tasks pretrain, sft, dpo and reward"));
    }
    if (place == host_memory && recipe.proto.run().device() == RunConfig::cpu) {
      error(key,
            "got host, but with run.device cpu host memory holds it anyway, expected none or disk");
    }
  }
  if (zero.offload_parameters() != no_offload && zero.stage() < 3) {
    error("zero.offload_parameters",
          absl::StrCat("got ", NameOf(zero.offload_parameters()), ", but with zero.stage ",
                       zero.stage(),
                       " every rank computes with all weights from where they are, expected none, "
                       "or zero.stage: 3"));
  }
  if (zero.offload_parameters() == host_memory && zero.offload_optimizer() == no_offload) {
    error("zero.offload_parameters",
          "got host, but zero.offload_optimizer none updates weights on the GPU, expected none, or "
          "zero.offload_optimizer: host");
  }
  const ParallelismSection::PipelineSchedule schedule =
      recipe.proto.parallelism().pipeline_schedule();
  const bool halves = schedule == ParallelismSection::zb_h1 || schedule == ParallelismSection::zbv;
  if (activations != no_offload && halves) {
    error("training.offload_activations",
          absl::StrCat(
              "got ", NameOf(activations), ", but parallelism.pipeline_schedule ",
              EnumYamlName(
                  *ParallelismSection::PipelineSchedule_descriptor()->FindValueByNumber(schedule)),
              " keeps what a block's second half of the backward pass reads where it was made, "
              "expected none, or another schedule"));
  }
  if (zero.has_offload_dir() && zero.offload_dir().empty())
    error("zero.offload_dir", "empty, expected a folder");
  if (zero.has_offload_dir() && !any_on_disk) {
    error("zero.offload_dir",
          "given, but nothing is offloaded to disk: set zero.offload_optimizer, "
          "zero.offload_parameters or training.offload_activations to disk");
  }
}

}  // namespace shoal
