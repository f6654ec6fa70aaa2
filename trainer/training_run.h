// Everything that a rank builds to train by a recipe, in the order in which it is built.
#pragma once

#include <memory>
#include <string>

#include "checkpoint/checkpoint.h"
#include "core/recipe.h"
#include "trainer/engine.h"
#include "trainer/hooks/eval_hook.h"
#include "trainer/hooks/log_hook.h"
#include "trainer/task.h"
#include "trainer/task_data.h"
#include "trainer/trainer.h"

namespace shoal {

class TrainingRun {
 public:
  // All borrowed outlive the run. Collective, as are the calls below.
  static absl::StatusOr<std::unique_ptr<TrainingRun>> Build(const LoadedRecipe& recipe,
                                                            Communicator& world,
                                                            const TaskEnvironment& environment);

  // Trains from where the weights are to the last step; the end is evaluated and saved.
  absl::Status Train();
  // The next `steps` steps (fewer if the run ends before), under `hook` instead of logs, evaluation
  // and checkpoints.
  absl::Status TrainWatched(int64_t steps, std::unique_ptr<Hook> hook);

  bool complete() const { return progress_.step >= num_steps_; }  // Nothing is left to train
  int64_t num_steps() const { return num_steps_; }
  const PreparedData& data() const { return prepared_; }
  Engine& engine() { return *engine_; }
  const TrainProgress& progress() const { return progress_; }

 private:
  TrainingRun(const LoadedRecipe& recipe, const TaskEnvironment& environment)
      : recipe_(recipe), environment_(environment), paths_(recipe.proto.run().output_dir()) {}

  absl::Status BuildData();
  absl::Status FillStates();  // From a checkpoint, a folder, or the seed
  absl::Status Resume(const std::string& checkpoint);
  Trainer MakeTrainer(int64_t num_steps, BlockRunner& runner, BatchSource& batches);
  std::string DataFingerprint() const;
  void Describe() const;  // The run in a few lines

  const LoadedRecipe& recipe_;
  const TaskEnvironment& environment_;
  const RunPaths paths_;
  PreparedData prepared_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<TaskData> data_;
  std::vector<Batch> held_out_;  // This rank's
  int64_t num_steps_ = 0;
  TrainProgress progress_;
  std::optional<TrainerState> resumed_;
};

}  // namespace shoal
