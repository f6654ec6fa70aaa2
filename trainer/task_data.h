// What a task's training steps and evaluations read, and what they minimise.
#pragma once

#include <memory>
#include <vector>

#include "core/recipe.h"
#include "data/prepare_data.h"
#include "trainer/batch_source.h"
#include "trainer/engine.h"
#include "trainer/objective.h"
#include "trainer/task.h"

namespace shoal {

class TaskData : public BatchSource {
 public:
  // This rank's held-out batches, as many on every rank; at most `max_batches` (0: all).
  virtual absl::StatusOr<std::vector<Batch>> EvalBatches(int64_t max_batches) = 0;
  virtual int64_t num_sequences() const = 0;  // An epoch, as a step's global_batch_size counts them
  // Null: cross entropy of the batches' targets.
  virtual const Objective* objective() const { return nullptr; }

  // Does Begin read the weights as the run found them, so that they are needed on resuming too?
  virtual bool reads_initial_weights() const { return false; }
  // Once, when the engine's weights are those that the run begins (or goes on) with. Collective.
  virtual absl::Status Begin(Engine& engine) { return absl::OkStatus(); }
};

// What data.train holds, by the task.
DataKind DataKindOf(const Recipe& recipe);

// Text and tokenizer of the recipe as token shards in its run folder, made by rank 0 of `ranks`.
// `shard_per_file` as in data/prepare_data.h. Collective.
absl::StatusOr<PreparedData> PrepareTaskData(const LoadedRecipe& recipe,
                                             const TaskEnvironment& environment,
                                             Communicator& ranks, bool shard_per_file = false);

// The engine outlives it. Collective.
absl::StatusOr<std::unique_ptr<TaskData>> MakeTaskData(const LoadedRecipe& recipe,
                                                       const PreparedData& prepared,
                                                       Engine& engine);

}  // namespace shoal
