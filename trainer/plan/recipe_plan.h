// From a recipe to its plan. The recipe is read here and in suggest.cc, its data never.
#pragma once

#include "core/file_system.h"
#include "core/recipe.h"
#include "core/recipe_validation.h"
#include "models/model_config.h"
#include "trainer/plan/hardware.h"
#include "trainer/plan/plan.h"

namespace shoal {

// The recipe's model. A vocab_size that model.config leaves out is tokenizer.train.vocab_size, or
// that of the tokenizer's file; InvalidArgument if there is neither.
absl::StatusOr<ModelConfig> PlannedModel(const LoadedRecipe& recipe, FileSystem& files);

Planner PlannerOf(const LoadedRecipe& recipe, ModelConfig config);

// The job of a recipe on such a mesh, with such a batch.
PlanJob JobOf(const Recipe& recipe, const MeshShape& mesh, const BatchPlan& batch,
              const Hardware& hardware);

// The plan of the recipe as it stands on `ranks` ranks. Errors: those with which a run would end
// before its first step, with the place of the key to blame.
absl::StatusOr<Plan> PlanRecipe(const LoadedRecipe& recipe, int ranks, const Hardware& hardware,
                                Planner& planner);

}  // namespace shoal
