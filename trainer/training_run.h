// Everything that a rank builds to train by a recipe, in the order in which it is built.
#pragma once

#include <memory>
#include <string>

#include "checkpoint/checkpoint.h"
#include "data/data_loader.h"
#include "trainer/hooks/eval_hook.h"
#include "trainer/hooks/log_hook.h"
#include "trainer/recipe_options.h"
#include "trainer/run_task.h"
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
  DeviceMesh& mesh() { return mesh_; }
  const Model& model() const { return model_; }
  const ShardedParameters& parameters() const { return *parameters_; }
  const ShardedOptimizer& optimizer() const { return *optimizer_; }
  const TrainProgress& progress() const { return progress_; }

 private:
  TrainingRun(const LoadedRecipe& recipe, const TaskEnvironment& environment, DeviceMesh mesh);

  // The library that multiplies fastest on this machine, the same on all ranks; a deterministic run
  // depends on no measurement.
  void ChooseProductLibrary();
  absl::Status Prepare();  // Data and tokenizer, by rank 0
  absl::Status BuildModelAndLoader();
  absl::Status PlanStages();
  absl::Status BuildStates();  // Sharded weights, optimizer
  absl::Status FillStates();   // From a checkpoint, a folder, or the seed
  absl::Status Resume(const std::string& checkpoint);
  absl::StatusOr<std::string> CheckpointToResume();  // "" for none
  Trainer MakeTrainer(int64_t num_steps, BlockRunner& runner, BatchSource& batches);
  absl::StatusOr<std::unique_ptr<LogHook>> MakeLogHook();
  TrainerState ConstantState() const;
  std::string DataFingerprint() const;
  void Describe() const;  // The run in a few lines

  const LoadedRecipe& recipe_;
  const TaskEnvironment& environment_;
  const RunPaths paths_;
  DeviceMesh mesh_;
  std::optional<TensorParallel> tensor_;  // Empty: one rank holds each matrix whole
  RunnerOptions runner_options_;
  BatchPlan batch_;
  PreparedData prepared_;
  std::unique_ptr<DataLoader> loader_;
  int64_t num_steps_ = 0;
  Model model_;
  std::unique_ptr<ShardedParameters> parameters_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  TrainProgress progress_;
  std::optional<TrainerState> resumed_;
};

}  // namespace shoal
