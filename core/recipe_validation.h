// What a recipe's keys must be to one another. Nothing here reads a file or needs a rank.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/recipe.h"

namespace shoal {

// Every conflict between values that are each valid alone. LoadRecipe calls this.
std::vector<RecipeError> ValidateRecipe(const LoadedRecipe& recipe);

// Sequences: global = per_device * accumulation * data-parallel ranks.
struct BatchPlan {
  int64_t per_device = 0;    // A rank's share of one micro-batch
  int64_t accumulation = 0;  // Micro-batches a step
  int64_t global = 0;        // A step's, over all ranks
  std::string equation;      // "global_batch_size 64 = per_device_train_batch_size 8 *
                             // gradient_accumulation_steps 4 * ranks 2"
};

// Any two of training.{per_device_train_batch_size, gradient_accumulation_steps, global_batch_size}
// give the third; three must agree. With only the global one, the micro-batch is the largest of at
// most 8 that divides a rank's share; what else is missing is 8 sequences and 1 micro-batch.
// InvalidArgument with the equation if it does not come out.
absl::StatusOr<BatchPlan> PlanBatch(const LoadedRecipe& recipe, int data_parallel_ranks);

// Ranks of each axis of the mesh.
struct MeshPlan {
  int replicate = 1, shard = 1, tensor = 1, pipeline = 1, context = 1;
  int expert = 1;               // Of the ranks of shard, which it divides: no factor of the product
  int data_parallel_ranks = 1;  // replicate * shard: those that read different data
  std::string equation;  // "2 ranks = replicate 1 * shard 2 * tensor 1 * pipeline 1 * context 1"
};

// The mesh of `parallelism` over `ranks` ranks (of a federated run: over the group of one client);
// data_parallel_shard 0 takes what the other axes leave. InvalidArgument with the equation if it
// does not come out.
absl::StatusOr<MeshPlan> PlanMesh(const LoadedRecipe& recipe, int ranks);

}  // namespace shoal
