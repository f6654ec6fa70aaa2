// Batches of task dpo: pairs of answers with the log-probabilities that a reference gives them.
//
// The reference is the model without its adapters, asked beside every step, or the model as the run
// found it, asked once about every pair before the first step: two numbers of each are kept, so no
// second model is held either way. It is asked about micro-batches as training sees them, so a
// first step's log-ratios are zero to the last bit.
#pragma once

#include <memory>

#include "core/recipe.pb.h"
#include "data/example_loader.h"
#include "trainer/task_data.h"

namespace shoal {

// The engine outlives it.
std::unique_ptr<TaskData> MakePreferenceData(const Recipe& recipe, ExampleLoader loader,
                                             Engine& engine);

}  // namespace shoal
