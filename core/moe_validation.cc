#include "core/moe_validation.h"

#include "absl/strings/str_cat.h"
#include "core/recipe_schema.h"

namespace shoal {

void ValidateMoe(const LoadedRecipe& recipe, const ReportError& error) {
  const Recipe& proto = recipe.proto;
  const bool plain_loss = proto.task() == pretrain || proto.task() == sft;
  if (proto.moe().capacity_factor() > 0 && !plain_loss) {
    error("moe.capacity_factor",
          absl::StrCat("got ", NumberText(proto.moe().capacity_factor()), ", but task ",
                       Task_Name(proto.task()),
                       " compares training passes with others, which drop nothing, expected 0"));
  }
  const double rate = proto.moe().bias_update_rate();
  if (rate == 0) return;
  const auto refuse = [&](const std::string& why) {
    error("moe.bias_update_rate", absl::StrCat("got ", rate, ", but ", why, ", expected 0"));
  };
  if (!plain_loss) {
    refuse(absl::StrCat("task ", Task_Name(proto.task()),
                        " compares passes through routers that stay as they are"));
  }
  if (proto.model().has_lora())
    refuse("adapters (model.lora) train alone and leave the routers' biases");
}

}  // namespace shoal
