#include "trainer/federated/fixed_point.h"

#include <atomic>
#include <bit>
#include <cmath>

#include <ATen/Dispatch.h>

#include "kernels/threads.h"

namespace shoal {
namespace {

constexpr int kSumBits = 62;
constexpr int64_t kGrain = 1 << 16;

// A double of magnitude below 2^51 plus this has its nearest whole number (ties to even) in the low
// bits of the mantissa.
constexpr double kRounder = 0x1.8p52;

int64_t WholePart(double rounded) {
  return std::bit_cast<int64_t>(rounded) - std::bit_cast<int64_t>(kRounder);
}

// x to the nearest whole number, |x| < 2^63, in two halves so that every step has a vector
// instruction. high * 2^32 is the nearest multiple of 2^32, so x - high * 2^32 is exact.
int64_t Round(double x) {
  const double high = x * 0x1p-32 + kRounder;
  const double low = (x - (high - kRounder) * 0x1p32) + kRounder;
  return static_cast<int64_t>(static_cast<uint64_t>(WholePart(high)) << 32) + WholePart(low);
}

// sums +-= round(values * scale), elements outside [-range, range] counting as 0. False if there
// were such.
template <bool kAdd, typename T>
bool Accumulate(const T* values, int64_t count, double range, double scale, int64_t* sums) {
  int64_t outside = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double value = static_cast<double>(values[k]);
    const bool inside = std::abs(value) <= range;
    const int64_t fixed = Round((inside ? value : 0.0) * scale);
    // Unsigned, since masked sums wrap.
    sums[k] = static_cast<int64_t>(static_cast<uint64_t>(sums[k]) +
                                   static_cast<uint64_t>(kAdd ? fixed : -fixed));
    outside |= static_cast<int64_t>(!inside);
  }
  return outside == 0;
}

}  // namespace

double FixedPoint::step() const { return std::ldexp(1.0, -fraction_bits); }

absl::StatusOr<FixedPoint> PlanFixedPoint(double range, double total_weight) {
  for (double number : {range, total_weight}) {
    if (!(number >= 1e-30 && number <= 1e30)) {
      return absl::InvalidArgumentError(absl::StrCat("fixed point for a range of ", range,
                                                     " and a total weight of ", total_weight,
                                                     ": both must lie between 1e-30 and 1e30"));
    }
  }
  int exponent = 0;  // range * total_weight <= 2^exponent, the least such
  if (std::frexp(range * total_weight, &exponent) == 0.5) --exponent;
  FixedPoint format{
      .fraction_bits = kSumBits - exponent, .range = range, .total_weight = total_weight};
  if (format.step() > range * 0x1p-24) {
    return absl::InvalidArgumentError(
        absl::StrCat("a total weight of ", total_weight,
                     " leaves fixed point fewer than float32's 24 bits of an update: scale the "
                     "weights to a sum of at most 2^38"));
  }
  return format;
}

absl::Status AddFixedPoint(const Tensor& values, double weight, const FixedPoint& format,
                           Tensor& sums) {
  SHOAL_CHECK(values.is_contiguous() && sums.is_contiguous() && sums.scalar_type() == at::kLong &&
              values.numel() == sums.numel())
      << "AddFixedPoint: " << values.sizes() << " " << values.scalar_type() << " into "
      << sums.sizes() << " " << sums.scalar_type();
  if (!(weight >= 0 && weight <= format.total_weight)) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight ", weight, " of an update is not in [0, ", format.total_weight,
                     "], the total that fixed point was planned for"));
  }
  const double scale = std::ldexp(weight, format.fraction_bits);
  int64_t first_outside = -1;
  double outside = 0;
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "AddFixedPoint", [&] {
    const scalar_t* in = values.const_data_ptr<scalar_t>();
    int64_t* out = sums.mutable_data_ptr<int64_t>();
    const auto for_all = [&](auto&& accumulate) {
      std::atomic<bool> all_inside = true;
      ParallelFor(values.numel(), kGrain, [&](int64_t begin, int64_t end) {
        if (!accumulate(in + begin, end - begin, format.range, scale, out + begin)) {
          all_inside = false;
        }
      });
      return all_inside.load();
    };
    if (for_all(Accumulate<true, scalar_t>)) return;
    for_all(Accumulate<false, scalar_t>);
    first_outside = 0;
    while (std::abs(static_cast<double>(in[first_outside])) <= format.range) ++first_outside;
    outside = static_cast<double>(in[first_outside]);
  });
  if (first_outside < 0) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("element ", first_outside, " of an update is ", outside,
                                            ", outside the range of fixed point, [-", format.range,
                                            ", ", format.range, "]"));
}

void DecodeFixedPoint(const Tensor& sums, const FixedPoint& format, double divisor, Tensor& out) {
  SHOAL_CHECK(sums.is_contiguous() && out.is_contiguous() && sums.scalar_type() == at::kLong &&
              out.numel() == sums.numel() && divisor > 0)
      << "DecodeFixedPoint: " << sums.sizes() << " " << sums.scalar_type() << " into "
      << out.sizes() << ", divisor " << divisor;
  const double units = std::ldexp(divisor, format.fraction_bits);
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "DecodeFixedPoint", [&] {
    const int64_t* in = sums.const_data_ptr<int64_t>();
    scalar_t* values = out.mutable_data_ptr<scalar_t>();
    ParallelFor(sums.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        values[k] = static_cast<scalar_t>(static_cast<double>(in[k]) / units);
      }
    });
  });
}

}  // namespace shoal
