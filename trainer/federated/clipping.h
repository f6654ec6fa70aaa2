// Clipping and noise of differentially private federated averaging (McMahan et al. 2018):
//
//   sum over clients of min(1, C / ||delta_i||) delta_i + N(0, (z C)^2), over a FIXED divisor
//
// with C held or following a quantile of the norms (Andrew et al. 2021). The norm is over all
// trainable weights together. With weights w_i clamped to w_max the sensitivity, and with it the
// noise, is w_max C. The accountant for z is privacy_accountant.h.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

#include "core/parameter.h"
#include "core/random.h"
#include "core/status.h"

namespace shoal {

// sqrt(sum of squares) over all tensors (float32, float64, bfloat16), in float64 and in an order
// that depends on their sizes alone. Where ranks share a client's weights they add
// kernels/optimizer_step.h's SumOfSquares instead.
double GlobalNorm(absl::Span<const Tensor> tensors);

// min(1, clip / norm): what a client's update is multiplied by. Fold it into AddFixedPoint's
// weight. OutOfRange if the norm is not finite: such an update must be left out of the round.
absl::StatusOr<double> ClipFactor(double norm, double clip);

// Adds elements [first, first + sum.numel()) of the stream's N(0, stddev^2) numbers to sum (float32
// or float64, contiguous), without a buffer of its size. Key `noise` by (seed, round) and `first`
// by the place in the whole model: then the noise of a coordinate does not depend on the ranks, and
// no round's noise comes twice, resumed or not. stddev = z C on the sum; z C / divisor on the mean.
void AddGaussianNoise(Tensor& sum, const Philox& noise, uint64_t first, double stddev);

// A clip norm that follows the `quantile` of the clients' norms: each client sends b_i = [norm_i <=
// C] and after the round C <- C exp(-learning_rate (b - quantile)), b the noised mean of b_i
// (Andrew et al. 2021, algorithm 1).
struct AdaptiveClipOptions {
  double initial_clip = 0.1;
  double quantile = 0.5;
  double learning_rate = 0.2;
  // Standard deviation of the noise on the sum of (b_i - 1/2); the paper takes a twentieth of the
  // expected clients a round. 0: no noise, and no privacy for the bits.
  double count_stddev = 0;
};

// The z that the updates must be noised with so that they and the bits together cost what z alone
// does: (z^-2 - (2 count_stddev)^-2)^(-1/2) (Andrew et al. 2021, theorem 1). z = 1, count_stddev =
// 2.5: 1.02062. z itself if z is 0. InvalidArgument unless 2 count_stddev > z.
absl::StatusOr<double> UpdateNoiseMultiplier(double z, double count_stddev);

class AdaptiveClip {
 public:
  // InvalidArgument: initial_clip or learning_rate not positive and finite, quantile outside [0,
  // 1], count_stddev below 0.
  static absl::StatusOr<AdaptiveClip> Create(const AdaptiveClipOptions& options);

  // The norm to clip this round's updates to. The only state: save it, and Restore it.
  double clip() const { return clip_; }
  void Restore(double clip) { clip_ = clip; }

  // After a round: `num_unclipped` clients had a norm <= clip() out of the `num_clients` that took
  // part; `divisor` is the expected number of clients (num_clients itself where that is fixed). The
  // noise is element `round` of the stream.
  void Update(int64_t num_unclipped, int64_t num_clients, double divisor, const Philox& noise,
              uint64_t round);

 private:
  explicit AdaptiveClip(const AdaptiveClipOptions& options);

  AdaptiveClipOptions options_;
  double clip_;
};

}  // namespace shoal
