// Everything that a rank builds for reinforcement learning by a recipe, in the order in which it is
// built: the policy's engine, who answers with its weights, who rewards, the reference, the critic.
// Steps are Trainer::TrainStep's; a rollout is made where one asks for its batches.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/recipe.h"
#include "trainer/rlhf/rlhf_options.h"
#include "trainer/rlhf/rollout_batches.h"
#include "trainer/run_state.h"

namespace shoal {

class RlhfRun {
 public:
  // All borrowed outlive the run. Collective, as are the calls below.
  static absl::StatusOr<std::unique_ptr<RlhfRun>> Build(const LoadedRecipe& recipe,
                                                        Communicator& world,
                                                        const TaskEnvironment& environment);

  bool complete() const { return progress_.step >= num_steps(); }
  int64_t num_steps() const { return recipe_.proto.training().max_steps(); }
  // From where the weights are to the last step; the end is evaluated and saved.
  absl::Status Train();

 private:
  // A model with what trains it, or only asks it.
  struct Actor {
    std::unique_ptr<Engine> engine;
    std::unique_ptr<Objective> objective;
    std::unique_ptr<BlockRunner> runner;
  };

  RlhfRun(const LoadedRecipe& recipe, Communicator& world, const TaskEnvironment& environment)
      : recipe_(recipe),
        world_(world),
        environment_(environment),
        paths_(recipe.proto.run().output_dir()) {}

  absl::Status Prepare();  // Tokenizer and prompts
  absl::Status BuildPolicy();
  absl::Status BuildReference();
  absl::Status BuildCritic();
  absl::Status BuildRollouts();
  absl::Status BuildPromptRollouts(const RolloutLayout& layout);
  absl::Status BuildEnvironmentRollouts(const RolloutLayout& layout);
  absl::Status PreparePrompts();
  bool acts() const { return HasEnvironment(recipe_.proto); }
  absl::Status FillStates();
  absl::Status Resume(const std::string& checkpoint);
  // The weights that the run begins with.
  absl::StatusOr<DeviceMesh> MakeMesh() const;
  std::string Fingerprint() const;
  Trainer MakeTrainer(const LoadedRecipe& recipe, Actor& actor, BatchSource& batches) const;

  LoadedRecipe recipe_;         // As given, with the sequences' length filled in
  LoadedRecipe critic_recipe_;  // With the critic's learning rate
  Communicator& world_;
  const TaskEnvironment& environment_;
  const RunPaths paths_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<PromptSet> prompts_, eval_prompts_;
  ModelConfig config_;
  BatchPlan batch_;
  int64_t steps_per_rollout_ = 1;

  Actor policy_, reference_, critic_;
  std::unique_ptr<RolloutEngine> generation_;
  std::unique_ptr<RewardSum> rewards_;
  std::unique_ptr<RolloutSource> maker_;
  std::unique_ptr<RolloutStore> store_;
  TrainProgress progress_;
  std::optional<TrainerState> resumed_;
};

}  // namespace shoal
