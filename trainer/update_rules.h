// From the recipe's `optimizer` to the rules that it names, and to what it says of single weights.
#pragma once

#include <memory>
#include <vector>

#include "core/recipe.h"
#include "optim/sharded_optimizer.h"
#include "parallel/unit_plan.h"

namespace shoal {

// Of weights that are updated element by element.
std::unique_ptr<UpdateRule> UpdateRuleOf(const OptimizerSection& optimizer);
// Of those that MarkWholeUpdates marks; null: the optimizer knows none.
std::shared_ptr<const WholeRule> WholeRuleOf(const OptimizerSection& optimizer);
ShardedOptimizer::Options OptimizerOptionsOf(const OptimizerSection& optimizer);

// Sets ParameterSpec::whole_update of the weights that the optimizer takes as wholes: adafactor all
// that are trained, adamw_8bit the matrices, muon the matrices of all blocks but the first and last
// (embedding and head). `blocks`: of the whole model.
void MarkWholeUpdates(const OptimizerSection& optimizer, std::vector<BlockParameters>& blocks);

// Sets what optimizer.groups say of the weights' learning rates and decay; the first group that
// matches a weight counts. Errors: a pattern that is no regular expression, or that leaves a group
// without a weight that is trained.
absl::Status ApplyGroups(const LoadedRecipe& recipe, std::vector<BlockParameters>& blocks);

}  // namespace shoal
