#include "trainer/rlhf/rlhf_task.h"

#include "trainer/rlhf/rlhf_run.h"
#include "trainer/train_task.h"

namespace shoal {

absl::Status RunRlhf(const LoadedRecipe& recipe, Communicator& world,
                     const TaskEnvironment& environment) {
  {
    SHOAL_ASSIGN_OR_RETURN(const std::unique_ptr<RlhfRun> run,
                           RlhfRun::Build(recipe, world, environment));
    if (run->complete()) {
      environment.log.Info(
          absl::StrCat("complete  step ", run->num_steps(), " is trained and saved"));
    } else {
      SHOAL_RETURN_IF_ERROR(run->Train());
    }
  }
  return FinishRun(recipe, world, environment);
}

}  // namespace shoal
