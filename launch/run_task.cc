#include "launch/run_task.h"

#include "trainer/train_task.h"

namespace shoal {

absl::Status RunTask(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment) {
  return Caught([&]() -> absl::Status {
    switch (recipe.proto.task()) {
      case pretrain:
        return RunTraining(recipe, world, environment);
      case federated:
        break;
    }
    return absl::InternalError(absl::StrCat("task ", Task_Name(recipe.proto.task())));
  });
}

}  // namespace shoal
