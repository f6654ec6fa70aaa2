// One model in training on the ranks of a mesh: this rank's blocks, its stages of the pipeline, its
// shards of weights, gradients and optimizer states. Every task trains through one or several.
//
//   SHOAL_ASSIGN_OR_RETURN(auto engine, Engine::Build(recipe, std::move(mesh), batch, config));
//   SHOAL_RETURN_IF_ERROR(engine->ReadStart(files));     // or a checkpoint
//   BlockRunner runner = engine->MakeRunner();
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "models/model.h"
#include "optim/sharded_optimizer.h"
#include "parallel/context_parallel.h"
#include "parallel/device_mesh.h"
#include "parallel/expert_parallel.h"
#include "parallel/sharded_parameters.h"
#include "trainer/block_runner.h"
#include "trainer/recipe_options.h"

namespace shoal {

class Engine {
 public:
  // `recipe` says how the model is shared out and by which rule it is trained; what does not go
  // together is an error at the key to blame. It must outlive the engine. Weights have no values
  // yet. `rule`: of the optimizer; null: the one that recipe.optimizer names. Collective over the
  // mesh, as are the calls below.
  static absl::StatusOr<std::unique_ptr<Engine>> Build(const LoadedRecipe& recipe, DeviceMesh mesh,
                                                       const BatchPlan& batch,
                                                       const ModelConfig& config,
                                                       std::unique_ptr<UpdateRule> rule = nullptr);

  // A model that is asked and never trained: no gradients, no optimizer's states.
  static absl::StatusOr<std::unique_ptr<Engine>> BuildFrozen(const LoadedRecipe& recipe,
                                                             DeviceMesh mesh,
                                                             const BatchPlan& batch,
                                                             const ModelConfig& config);

  // The weights that recipe.model starts from: a folder's, or random ones.
  absl::Status ReadStart(FileSystem& files);
  // Each weight a function of the seed and its name.
  void InitializeRandom(uint64_t seed);
  // The weights of a Hugging Face folder.
  absl::Status ReadFolder(FileSystem& files, const std::string& folder);
  // The optimizer's states, weights among them, out of a checkpoint; the weights that compute
  // follow. What else the checkpoint says is returned.
  absl::StatusOr<TrainerState> LoadCheckpoint(FileSystem& files, const std::string& checkpoint);

  // `objective` outlives the runner; null: the cross entropy of all targets.
  BlockRunner MakeRunner(const Objective* objective = nullptr);

  DeviceMesh& mesh() { return mesh_; }
  const DeviceMesh& mesh() const { return mesh_; }
  const BatchPlan& batch() const { return batch_; }
  const Model& model() const { return model_; }
  // Null: each rank holds its sequences whole.
  const ContextParallel* context() const { return context_ ? &*context_ : nullptr; }
  const RunnerOptions& runner_options() const { return runner_options_; }
  ShardedParameters& parameters() { return *parameters_; }
  const ShardedParameters& parameters() const { return *parameters_; }
  OffloadSpace* offload() { return offload_.get(); }  // Null: nothing is offloaded
  ShardedOptimizer& optimizer() { return *optimizer_; }
  const ShardedOptimizer& optimizer() const { return *optimizer_; }

  // Model, mesh, batch and what this rank holds, a line each.
  std::vector<std::string> Describe() const;

 private:
  Engine(const LoadedRecipe& recipe, DeviceMesh mesh, const BatchPlan& batch, bool frozen)
      : recipe_(recipe), frozen_(frozen), mesh_(std::move(mesh)), batch_(batch) {}

  absl::Status BuildAll(const ModelConfig& config, std::unique_ptr<UpdateRule> rule);
  absl::Status BuildBlocks(const ModelConfig& config);
  absl::Status PlanStages();
  // What of recipe.zero stays with the mesh and the model.
  absl::StatusOr<ZeroOptions> MakeZeroOptions();
  absl::Status BuildStates(std::unique_ptr<UpdateRule> rule);

  const LoadedRecipe& recipe_;
  const bool frozen_;  // See BuildFrozen
  DeviceMesh mesh_;
  BatchPlan batch_;
  std::optional<TensorParallel> tensor_;    // Empty: one rank holds each matrix whole
  std::optional<ContextParallel> context_;  // Empty: one rank holds each sequence whole
  std::optional<ExpertParallel> experts_;   // Empty: one rank holds all experts, if there are any
  Model model_;
  RunnerOptions runner_options_;
  std::unique_ptr<OffloadSpace> offload_;         // Null: nothing goes to disk
  std::unique_ptr<ActivationStore> activations_;  // Null: they stay in memory
  std::unique_ptr<ShardedParameters> parameters_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
};

// The library that multiplies fastest on this machine, the same on all ranks; a deterministic run
// depends on no measurement, and on a device takes libtorch's operations that add in a fixed order.
// Once a job, before its engines are built. Collective.
void ChooseProductLibrary(const Recipe& recipe, Communicator& ranks);

}  // namespace shoal
