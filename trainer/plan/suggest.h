// The meshes of a recipe's model on so many ranks, by estimated time of a step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/plan/recipe_plan.h"

namespace shoal {

struct Suggestion {
  Plan plan;
  StepTime time;
  std::vector<std::string> overrides;  // Of the recipe, "key.sub=value": what makes it this one
};

struct Suggestions {
  std::vector<Suggestion> best;  // Fastest first
  int64_t tried = 0;
  int64_t fitting = 0;
  double least_bytes = 0;  // What the fullest rank of the leanest mesh holds
};

// A mesh fits if its fullest rank takes at most this share of the memory: activations are
// estimates.
inline constexpr double kUsableMemory = 0.9;

// Tries replicate * shard * tensor * pipeline = ranks, ZeRO stages, recomputation and sizes of
// micro-batches, the recipe's global batch and schedule kept. InvalidArgument: the global batch is
// not known.
absl::StatusOr<Suggestions> SuggestMeshes(const LoadedRecipe& recipe, int ranks,
                                          const Hardware& hardware, Planner& planner,
                                          int most = 10);

}  // namespace shoal
