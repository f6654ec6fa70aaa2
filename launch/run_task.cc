#include "launch/run_task.h"

#include "trainer/federated/federated_task.h"
#include "trainer/rlhf/rlhf_task.h"
#include "trainer/train_task.h"

namespace shoal {

absl::Status RunTask(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment) {
  return Caught([&]() -> absl::Status {
    switch (recipe.proto.task()) {
      case pretrain:
      case sft:
      case dpo:
      case reward:
        return RunTraining(recipe, world, environment);
      case grpo:
      case ppo:
        return RunRlhf(recipe, world, environment);
      case federated:
        return RunFederated(recipe, world, environment);
    }
    return absl::InternalError(absl::StrCat("task ", Task_Name(recipe.proto.task())));
  });
}

}  // namespace shoal
