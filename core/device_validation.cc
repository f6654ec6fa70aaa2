#include "core/device_validation.h"

#include "absl/strings/str_cat.h"

namespace shoal {

std::optional<std::string> WhyNotOnGpu(const Recipe& recipe) {
  const auto stays = [](const auto&... what) {
    return absl::StrCat(what..., " does not run on a GPU");
  };
  const ZeroSection& zero = recipe.zero();
  // The GPU would update weights that the host holds.
  if (zero.offload_parameters() != no_offload && zero.offload_optimizer() == no_offload)
    return stays("zero.offload_parameters without zero.offload_optimizer");
  return std::nullopt;
}

void ValidateDevice(const LoadedRecipe& recipe, const ReportError& report) {
  if (recipe.proto.run().device() != RunConfig::cuda) return;
  if (const std::optional<std::string> why = WhyNotOnGpu(recipe.proto))
    report("run.device", absl::StrCat("got cuda, but ", *why, ", expected auto or cpu"));
}

}  // namespace shoal
