#include "trainer/state_pieces.h"

namespace shoal {

std::vector<StatePiece> ToStatePieces(const std::vector<ShardedOptimizer::NamedPiece>& pieces) {
  std::vector<StatePiece> out;
  out.reserve(pieces.size());
  for (const auto& piece : pieces) {
    out.push_back(
        {.name = piece.name, .shape = piece.shape, .begin = piece.begin, .data = piece.data});
  }
  return out;
}

}  // namespace shoal
