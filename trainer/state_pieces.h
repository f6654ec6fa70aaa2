// What the optimizer holds, as checkpoints name it.
#pragma once

#include <vector>

#include "checkpoint/checkpoint.h"
#include "optim/sharded_optimizer.h"

namespace shoal {

// Pieces of the optimizer's state as a checkpoint wants them: views, nothing is copied.
std::vector<StatePiece> ToStatePieces(const std::vector<ShardedOptimizer::NamedPiece>& pieces);

}  // namespace shoal
