#include "trainer/rlhf/rlhf_task.h"

#include "trainer/rlhf/rlhf_run.h"
#include "trainer/train_task.h"

namespace shoal {

absl::Status RunRlhf(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment) {
  return RunToEnd<RlhfRun>(recipe, world, environment);
}

}  // namespace shoal
