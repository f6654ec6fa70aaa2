// From a model's description to sharded weights with values: which are trained, and what they start
// as.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model.h"
#include "models/weights.h"
#include "optim/sharded_optimizer.h"
#include "parallel/device_mesh.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/stage_split.h"
#include "parallel/sharded_parameters.h"

namespace shoal {

// The ranks of the mesh that share this rank's weights.
ShareGroups GroupsOf(const DeviceMesh& mesh, Communicator* tied_stages = nullptr);

// What ShardedParameters needs to know of a model. Weights whose names match one of the regular
// expressions `freeze` (ECMAScript, anywhere in the name) are not trained. InvalidArgument: an
// expression that cannot be read, or that matches no weight.
absl::StatusOr<std::vector<BlockParameters>> DescribeParameters(
    const Model& model, const std::vector<std::string>& freeze = {});

// The blocks of this rank's pipeline chunks, one chunk after the other, out of a whole model's.
// Weights tied to a block of another rank become copies that its owner counts and saves.
std::vector<BlockParameters> OfChunks(const std::vector<BlockParameters>& model,
                                      const std::vector<BlockRange>& chunks);

// Pipeline ranks that hold a weight of another one's, and those whose it is; empty: nobody does.
std::vector<int> RanksWithTiedWeights(const std::vector<BlockParameters>& model,
                                      const Schedule& schedule,
                                      const std::vector<BlockRange>& stages);

// Random weights: each element a function of the seed, the weight's name and its index, whatever
// the number of ranks. Each rank computes what it owns. Collective.
void InitializeWeights(uint64_t seed, ShardedOptimizer& optimizer, ShardedParameters& parameters);

// Weights of a Hugging Face folder; each rank reads the bytes it owns. What the folder need not
// hold (WeightReader::Holds) starts from the seed, as in InitializeWeights. Collective, but for an
// error, which other ranks do not learn of here.
absl::Status ReadWeights(const WeightReader& reader, uint64_t seed, ShardedOptimizer& optimizer,
                         ShardedParameters& parameters);

}  // namespace shoal
