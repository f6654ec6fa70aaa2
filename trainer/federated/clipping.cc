#include "trainer/federated/clipping.h"

#include <algorithm>
#include <cmath>

#include <ATen/Functions.h>

#include "kernels/optimizer_step.h"
#include "kernels/threads.h"

namespace shoal {

double GlobalNorm(absl::Span<const Tensor> tensors) {
  double squares = 0;
  for (const Tensor& tensor : tensors) squares += SumOfSquares(tensor);
  return std::sqrt(squares);
}

absl::StatusOr<double> ClipFactor(double norm, double clip) {
  if (!(clip > 0 && std::isfinite(clip))) {
    return absl::InvalidArgumentError(absl::StrCat("clip norm ", clip, " is not positive"));
  }
  if (!std::isfinite(norm)) {
    return absl::OutOfRangeError(absl::StrCat("the norm of an update is ", norm));
  }
  return norm <= clip ? 1.0 : clip / norm;
}

void AddGaussianNoise(Tensor& sum, const Philox& noise, uint64_t first, double stddev) {
  SHOAL_CHECK(sum.is_contiguous()) << "AddGaussianNoise needs contiguous memory";
  if (stddev == 0) return;
  constexpr int64_t kBlock = 4096;
  const Tensor flat = sum.view({-1});
  ParallelFor(flat.numel(), kBlock, [&](int64_t begin, int64_t end) {
    Tensor buffer = at::empty({std::min(kBlock, end - begin)}, sum.options());
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t size = std::min(kBlock, end - at);
      Tensor block = buffer.narrow(0, 0, size);
      FillNormal(block, noise, first + static_cast<uint64_t>(at), stddev);
      flat.narrow(0, at, size).add_(block);
    }
  });
}

absl::StatusOr<double> UpdateNoiseMultiplier(double z, double count_stddev) {
  if (z == 0) return 0.0;
  if (!(z > 0 && 2 * count_stddev > z)) {
    return absl::InvalidArgumentError(
        absl::StrCat("noise multiplier ", z, " cannot be split with noise of deviation ",
                     count_stddev, " on the count: that must be above ", z / 2));
  }
  return 1 / std::sqrt(1 / (z * z) - 1 / (4 * count_stddev * count_stddev));
}

absl::StatusOr<AdaptiveClip> AdaptiveClip::Create(const AdaptiveClipOptions& options) {
  const auto positive = [](double x) { return x > 0 && std::isfinite(x); };
  if (!positive(options.initial_clip) || !positive(options.learning_rate) ||
      !(options.quantile >= 0 && options.quantile <= 1) ||
      !(options.count_stddev >= 0 && std::isfinite(options.count_stddev))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "adaptive clipping from norm ", options.initial_clip, " at rate ", options.learning_rate,
        " to quantile ", options.quantile, " with count noise ", options.count_stddev,
        ": norm and rate must be positive, the quantile in [0, 1], the noise not negative"));
  }
  return AdaptiveClip(options);
}

AdaptiveClip::AdaptiveClip(const AdaptiveClipOptions& options)
    : options_(options), clip_(options.initial_clip) {}

void AdaptiveClip::Update(int64_t num_unclipped, int64_t num_clients, double divisor,
                          const Philox& noise, uint64_t round) {
  SHOAL_CHECK(num_unclipped >= 0 && num_unclipped <= num_clients && divisor > 0)
      << num_unclipped << " of " << num_clients << " clients unclipped, divisor " << divisor;
  Tensor count_noise = at::zeros({1}, at::kDouble);
  if (options_.count_stddev > 0) FillNormal(count_noise, noise, round, options_.count_stddev);
  // Of b_i - 1/2, whose sensitivity is 1/2: the 2 in UpdateNoiseMultiplier.
  const double sum = static_cast<double>(num_unclipped) - 0.5 * static_cast<double>(num_clients);
  const double share = 0.5 + (sum + count_noise.item<double>()) / divisor;
  clip_ *= std::exp(-options_.learning_rate * (share - options_.quantile));
}

}  // namespace shoal
