// What a run of one trainer says of itself: how it trains, its rows of metrics, and what its
// checkpoints hold beside the tensors.
#pragma once

#include <memory>
#include <string>

#include "checkpoint/checkpoint.h"
#include "core/recipe.h"
#include "trainer/engine.h"
#include "trainer/hooks/log_hook.h"
#include "trainer/run_folder.h"
#include "trainer/task.h"
#include "trainer/trainer.h"

namespace shoal {

Trainer::Options TrainerOptionsOf(const Recipe& recipe, int64_t num_steps);

// Writes to the sinks that the recipe asks for. `seq_length`: for the model's FLOPs a token.
// Collective.
absl::StatusOr<std::unique_ptr<LogHook>> MakeLogHook(const LoadedRecipe& recipe,
                                                     const TaskEnvironment& environment,
                                                     Engine& engine, const RunSteps& steps,
                                                     int64_t seq_length);

// As recipe.profiling says; after the other hooks, before the trainer runs. `rows` outlives the
// trainer. Collective.
void AddProfileHook(const Recipe& recipe, const TaskEnvironment& environment, LogHook& rows,
                    Trainer& trainer);

// What of a checkpoint's state does not change while training. `trained_before`: what a checkpoint
// that the run goes on from says; null: none.
TrainerState ConstantStateOf(const LoadedRecipe& recipe, const TaskEnvironment& environment,
                             const Engine& engine, const std::string& data_fingerprint,
                             const TrainerState* trained_before);

// Where the run that wrote `state` was.
TrainProgress ProgressOf(const TrainerState& state);

}  // namespace shoal
