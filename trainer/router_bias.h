// Balance without a loss (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for
// Mixture-of-Experts", algorithm 1): routers choose experts by score plus a bias, and after each
// step b_i += rate * sign(mean load - load of i). The loads are counted over all tokens of the
// global batch, exactly, so the biases are the same on every mesh.
#pragma once

#include "models/model_config.h"
#include "parallel/sharded_parameters.h"
#include "trainer/routing_totals.h"

namespace shoal {

// Moves the biases of the layers that this rank holds, but for frozen ones. `routing`: reduced.
void MoveRouterBiases(const RoutingTotals& routing, const ModelConfig& config, double rate,
                      ShardedParameters& parameters);

}  // namespace shoal
