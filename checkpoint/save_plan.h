// Which rank writes what, found from what all ranks hold: a pure function, so that every rank comes
// to the same plan without another word.
#pragma once

#include <string>
#include <vector>

#include "absl/types/span.h"

#include "checkpoint/checkpoint.h"

namespace shoal {

// Part i of rank r's plan: the piece with index `piece` in that rank's list.
struct PlannedPiece {
  int piece;
  // Of the safetensors entry: the tensor's name, with "[begin:end]" after it where a file holds
  // several pieces of one tensor; and the tensor's shape if the piece is all of it, else (end -
  // begin).
  std::string entry_name;
  std::vector<int64_t> entry_shape;
};

// plan[rank]: what it writes. A piece that several ranks hold goes to that one of them which has
// least to write so far. InvalidArgument, with the tensors and elements named: pieces of one tensor
// that differ in dtype or shape, overlap, leave a gap, or lie outside.
absl::StatusOr<std::vector<std::vector<PlannedPiece>>> PlanSave(absl::Span<const PieceList> held);

// Describes pieces to the other ranks. InvalidArgument: a piece that is not contiguous, or of a
// dtype or name that safetensors cannot hold.
absl::StatusOr<PieceList> DescribePieces(absl::Span<const StatePiece> pieces);

}  // namespace shoal
