#include "parallel/quantized_blocks.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/dtype.h"

namespace shoal {
namespace {

Tensor SentAndSummed(const std::vector<Tensor>& parts) {
  const int64_t n = parts[0].numel(), bytes = QuantizedBytes(n);
  Tensor packed = at::empty({static_cast<int64_t>(parts.size()) * bytes}, at::kByte);
  for (size_t p = 0; p < parts.size(); ++p)
    Quantize(parts[p], packed.narrow(0, static_cast<int64_t>(p) * bytes, bytes));
  Tensor sum = at::full_like(parts[0], 3);
  SumQuantized(packed, static_cast<int>(parts.size()), sum);
  return sum;
}

// (n) of the header's bound: half a scale, a block's largest magnitude / 254.
Tensor Bounds(const Tensor& values) {
  const int64_t n = values.numel(), blocks = (n + kQuantizedBlock - 1) / kQuantizedBlock;
  Tensor padded = at::zeros({blocks * kQuantizedBlock}, at::kDouble);
  padded.narrow(0, 0, n).copy_(values);
  const Tensor largest = padded.view({blocks, -1}).abs().amax({1}, true);
  return (largest / 254).expand({blocks, kQuantizedBlock}).reshape({-1}).narrow(0, 0, n);
}

// Of the type that the result is rounded to.
double Rounding(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? 1.0 / 256 : dtype == at::kHalf ? 1.0 / 2048 : 0;
}

Tensor SomeValues(int64_t n, at::ScalarType dtype) {
  // Magnitudes that differ by 1e6 between blocks and within them.
  const Tensor sizes = (at::arange(n, at::kDouble) / 300).sin() * 3 + at::randn({n}, at::kDouble);
  return (at::randn({n}, at::kDouble) * sizes.exp()).to(dtype);
}

TEST(QuantizedBlocks, ErrorsAreBounded) {
  at::manual_seed(5);
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (int64_t n : {1, 255, 256, 257, 100003}) {
      const Tensor values = SomeValues(n, dtype), back = SentAndSummed({values});
      const Tensor error = (back.to(at::kDouble) - values.to(at::kDouble)).abs();
      const Tensor bound =
          Bounds(values) * (1 + 1e-5) + values.to(at::kDouble).abs() * 1.1 * Rounding(dtype);
      EXPECT_TRUE(error.le(bound).all().item<bool>()) << DtypeName(dtype) << ", " << n;
      // And no better than a step of that size allows.
      if (n > 1000) {
        EXPECT_GT((error / Bounds(values)).max().item<double>(), 0.9);
      }
    }
  }
}

TEST(QuantizedBlocks, SumsAreTakenInOrder) {
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    std::vector<Tensor> parts;
    for (int p = 0; p < 4; ++p) parts.push_back(SomeValues(1000, dtype));
    const at::ScalarType wide = SumDtype(dtype);
    Tensor want = at::zeros({1000}, wide);
    for (const Tensor& part : parts) want += SentAndSummed({part.to(wide)});
    EXPECT_TRUE(SentAndSummed(parts).equal(want.to(dtype))) << DtypeName(dtype);
  }
}

TEST(QuantizedBlocks, NonFiniteNumbersAreNotLost) {
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kHalf}) {
    for (double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      Tensor values = at::ones({600}, dtype);
      values[300] = bad;
      const Tensor back = SentAndSummed({values, at::ones({600}, dtype)});
      const Tensor lost = back.isnan();
      EXPECT_TRUE(lost.narrow(0, 256, 256).all().item<bool>());
      EXPECT_EQ(lost.sum().item<int64_t>(), 256);
    }
  }
}

TEST(QuantizedBlocks, ZerosAndTheSmallest) {
  EXPECT_TRUE(SentAndSummed({at::zeros({300})}).equal(at::zeros({300})));
  EXPECT_TRUE(SentAndSummed({at::full({300}, 1e-40)}).equal(at::zeros({300})));
  EXPECT_EQ(QuantizedBytes(256), 260);
  EXPECT_EQ(QuantizedBytes(257), 265);
}

}  // namespace
}  // namespace shoal
