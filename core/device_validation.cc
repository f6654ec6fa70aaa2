#include "core/device_validation.h"

#include "absl/strings/str_cat.h"
#include "core/rlhf_validation.h"

namespace shoal {

std::optional<std::string> WhyNotOnGpu(const Recipe& recipe) {
  const auto stays = [](const auto&... what) {
    return absl::StrCat(what..., " does not run on a GPU");
  };
  // Clients, rollouts and generation.
  if (!IsPlainTraining(recipe)) return stays("task ", Task_Name(recipe.task()));
  // What the host packs and unpacks.
  const OptimizerSection& optimizer = recipe.optimizer();
  const ZeroSection& zero = recipe.zero();
  if (optimizer.name() == OptimizerSection::adamw_8bit) return stays("optimizer.name adamw_8bit");
  if (optimizer.master_weights() == OptimizerSection::split)
    return stays("optimizer.master_weights split");
  if (zero.quantized_weights()) return stays("zero.quantized_weights");
  if (zero.quantized_gradients()) return stays("zero.quantized_gradients");
  // What goes from host memory to disk.
  if (zero.offload_optimizer() == disk) return stays("zero.offload_optimizer disk");
  if (zero.offload_parameters() == disk) return stays("zero.offload_parameters disk");
  if (recipe.training().offload_activations() == disk)
    return stays("training.offload_activations disk");
  return std::nullopt;
}

void ValidateDevice(const LoadedRecipe& recipe, const ReportError& report) {
  if (recipe.proto.run().device() != RunConfig::cuda) return;
  if (const std::optional<std::string> why = WhyNotOnGpu(recipe.proto))
    report("run.device", absl::StrCat("got cuda, but ", *why, ", expected auto or cpu"));
}

}  // namespace shoal
