// Rules that bear some clients that send anything at all (Byzantine). updates: n tensors of P
// elements (one a client, or the same slice of each), contiguous, all float32 or all float64. No
// copies of P elements are made. NaN counts as plus infinity, so that it is an outlier like any
// other.
//
// The server must see single updates, which secure aggregation prevents: a recipe cannot have both.
// Updates count equally: weights that clients report of themselves would be the attacker's lever.
//
// Coordinate-wise rules treat each coordinate alone: ranks may each take a slice. Their results do
// not depend on the order of the clients, to the last bit.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "core/parameter.h"
#include "core/status.h"

namespace shoal {

// out[p] = the median of updates[.][p]; of an even number of clients the mean of the middle two.
// Bears fewer than half (Yin et al. 2018). out: (P) in the dtype of the updates. InvalidArgument:
// no updates, or sizes or dtypes that differ.
absl::Status CoordinateMedian(absl::Span<const Tensor> updates, Tensor& out);

// out[p] = the mean of updates[.][p] without the floor(trim n) largest and as many smallest, added
// in float64 in increasing order. Bears floor(trim n) (Yin et al. 2018). InvalidArgument also: trim
// outside [0, 0.5).
absl::Status TrimmedMean(absl::Span<const Tensor> updates, double trim, Tensor& out);

// distances[i, j] += ||updates[i] - updates[j]||^2. distances: (n, n) float64. Blocks of 1024
// coordinates are added in order: whoever walks slices at multiples of 1024 in order gets the bits
// of one call.
absl::Status AddSquaredDistances(absl::Span<const Tensor> updates, Tensor& distances);

// The num_selected clients of lowest score, best first, ties to the lower index, where the score is
// the sum of the n - f - 2 smallest squared distances to others (Blanchard et al. 2017;
// num_selected = 1: Krum, more: Multi-Krum, whose result is the mean of the selected). distances:
// (n, n) float64. f: the num_byzantine clients to bear. InvalidArgument unless n >= 2 f + 3 and 1
// <= num_selected <= n - f; FailedPrecondition: not even num_selected scores are finite.
absl::StatusOr<std::vector<int>> SelectKrum(const Tensor& distances, int num_byzantine,
                                            int num_selected);

}  // namespace shoal
