// Which blocks make which pipeline stage.
#pragma once

#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace shoal {

struct BlockRange {
  int first;
  int end;  // Not in the range
  int size() const { return end - first; }
  bool operator==(const BlockRange&) const = default;
};

// Cuts blocks, in order, into `stages` runs, none empty, so that the costliest run is as cheap as
// can be; among such cuts, later runs get the larger share (the first stages hold most
// activations). InvalidArgument: fewer blocks than stages.
absl::StatusOr<std::vector<BlockRange>> SplitByCost(std::span<const double> costs, int stages);

}  // namespace shoal
