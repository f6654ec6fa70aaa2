// From a model's description to sharded weights with values: which are trained, and what they start
// as.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model.h"
#include "models/weights.h"
#include "optim/sharded_optimizer.h"
#include "parallel/sharded_parameters.h"

namespace shoal {

// What ShardedParameters needs to know of a model. Weights whose names match one of the regular
// expressions `freeze` (ECMAScript, anywhere in the name) are not trained. InvalidArgument: an
// expression that cannot be read, or that matches no weight.
absl::StatusOr<std::vector<BlockParameters>> DescribeParameters(
    const Model& model, const std::vector<std::string>& freeze = {});

// Random weights: each element a function of the seed, the weight's name and its index, whatever
// the number of ranks. Each rank computes what it owns. Collective.
void InitializeWeights(uint64_t seed, ShardedOptimizer& optimizer, ShardedParameters& parameters);

// Weights of a Hugging Face folder; each rank reads the bytes it owns. Collective, but for an
// error, which other ranks do not learn of here.
absl::Status ReadWeights(const WeightReader& reader, ShardedOptimizer& optimizer,
                         ShardedParameters& parameters);

}  // namespace shoal
