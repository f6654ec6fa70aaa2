// What is packed and unpacked on a device has the bits that the host gives: with our kernels and
// with plain operators. Runs on the fake device, and in build/cuda on a GPU.
#include <cstring>
#include <limits>
#include <optional>
#include <random>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "parallel/quantized_blocks.h"
#include "parallel/split_master.h"
#include "tests/fake_device/device_under_training.h"

namespace shoal {
namespace {

class PackedNumbers : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (DeviceTypeUnderTest() == c10::kCPU) GTEST_SKIP() << "this machine has no GPU";
    kernels_.emplace(GetParam());
    at::manual_seed(7);
  }
  static Tensor Placed(const Tensor& x) { return x.to(DeviceTypeUnderTest()); }

 private:
  std::optional<KernelsOfDevice> kernels_;
};
INSTANTIATE_TEST_SUITE_P(All, PackedNumbers, testing::Bool(), [](const auto& info) {
  return info.param ? "Kernels" : "PlainOperators";
});

// Equal but for the bits of a NaN.
testing::AssertionResult SameNumbers(const Tensor& got, const Tensor& want) {
  const Tensor same = got.eq(want).logical_or_(got.isnan().logical_and_(want.isnan()));
  if (same.all().item<bool>()) return testing::AssertionSuccess();
  const int64_t at = same.logical_not().nonzero()[0][0].item<int64_t>();
  return testing::AssertionFailure() << "at " << at << ": got " << got[at].item<double>()
                                     << ", want " << want[at].item<double>();
}

// Parts of one length, quantised and summed where they lie.
struct SentParts {
  Tensor packed, sum;
  explicit SentParts(const std::vector<Tensor>& parts) {
    const int64_t n = parts[0].numel(), bytes = QuantizedBytes(n),
                  count = static_cast<int64_t>(parts.size());
    packed = at::zeros({count * bytes}, parts[0].options().dtype(at::kByte));
    for (int64_t p = 0; p < count; ++p) Quantize(parts[p], packed.narrow(0, p * bytes, bytes));
    sum = at::full_like(parts[0], 3);
    SumQuantized(packed, static_cast<int>(count), sum);
  }
};

void ExpectSentAsOnHost(const std::vector<Tensor>& parts, const std::string& what) {
  std::vector<Tensor> placed;
  for (const Tensor& part : parts) placed.push_back(part.to(DeviceTypeUnderTest()));
  const SentParts want(parts), got(placed);
  const int64_t n = parts[0].numel(), bytes = QuantizedBytes(n);
  for (size_t p = 0; p < parts.size(); ++p) {
    const auto of_part = [&](const Tensor& packed) {
      return packed.cpu().narrow(0, static_cast<int64_t>(p) * bytes, bytes);
    };
    EXPECT_TRUE(of_part(got.packed).narrow(0, 0, n).equal(of_part(want.packed).narrow(0, 0, n)))
        << what;
    const auto scales = [&](const Tensor& packed) {
      return of_part(packed).narrow(0, n, bytes - n).clone().view(at::kFloat);
    };
    EXPECT_TRUE(SameNumbers(scales(got.packed), scales(want.packed))) << what;
  }
  EXPECT_TRUE(SameNumbers(got.sum.cpu(), want.sum)) << what;
}

TEST_P(PackedNumbers, BlocksAreQuantizedAndSummedAsOnTheHost) {
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (int64_t n : {1, 255, 256, 257, 2048, 4096, 10007}) {
      std::vector<Tensor> parts;
      for (int p = 0; p < 3; ++p) {
        const Tensor sizes = (at::arange(n, at::kDouble) / 300).sin() * 3;
        parts.push_back((at::randn({n}, at::kDouble) * sizes.exp()).to(dtype));
      }
      ExpectSentAsOnHost(parts, absl::StrCat(DtypeName(dtype), ", ", n));
    }
  }
}

TEST_P(PackedNumbers, AwkwardBlocksToo) {
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    Tensor values = at::randn({3000}).to(dtype);
    values[300] = std::numeric_limits<double>::infinity();
    values[600] = std::nan("");
    values.narrow(0, 768, 256).zero_();
    values.narrow(0, 1024, 256).fill_(1e-40);
    // Halfway between two codes, whose scale is 1.
    values.narrow(0, 1280, 254).copy_(at::arange(-127, 127) + 0.5);
    values[1534] = 127;
    values.narrow(0, 2560, 256).mul_(1e35);
    ExpectSentAsOnHost({values, at::ones({3000}, dtype), values}, DtypeName(dtype));
  }
}

Tensor FloatsOf(const std::vector<uint32_t>& bits) {
  Tensor x = at::empty({static_cast<int64_t>(bits.size())}, at::kFloat);
  std::memcpy(x.mutable_data_ptr(), bits.data(), bits.size() * sizeof(uint32_t));
  return x;
}

int64_t DifferingBits(const Tensor& a, const Tensor& b) {
  return a.cpu().view(at::kInt).ne(b.cpu().view(at::kInt)).sum().item<int64_t>();
}

// Every pattern of the upper bits, with the lower ones that rounding treats apart and random ones.
TEST_P(PackedNumbers, EveryMasterComesBackWithItsBits) {
  std::vector<uint32_t> numbers, others;
  std::mt19937 random(3);
  std::uniform_int_distribution<uint32_t> any(0, 0xFFFF);
  for (uint32_t high = 0; high < 1 << 16; ++high) {
    for (uint32_t low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu, any(random)}) {
      const uint32_t bits = high << 16 | low;
      ((bits & 0x7FFFFFFF) > 0x7F800000 ? others : numbers).push_back(bits);
    }
  }
  const Tensor masters = Placed(FloatsOf(numbers)), rounded = masters.to(at::kBFloat16);
  SplitMaster split(masters.numel(), masters.device());
  EXPECT_EQ(split.nbytes(), 2 * masters.numel() + (masters.numel() + 31) / 32 * 4);
  split.Split(0, masters, rounded);
  Tensor joined = at::empty_like(masters);
  split.Join(0, rounded, joined);
  EXPECT_EQ(DifferingBits(joined, masters), 0);

  const Tensor nans = Placed(FloatsOf(others));
  SplitMaster of_nans(nans.numel(), nans.device());
  of_nans.Split(0, nans, nans.to(at::kBFloat16));
  Tensor back = at::empty_like(nans);
  of_nans.Join(0, nans.to(at::kBFloat16), back);
  EXPECT_TRUE(back.isnan().all().item<bool>());
}

// Runs that begin and end anywhere leave the others as they are.
TEST_P(PackedNumbers, RunsOfMastersAreWrittenAlone) {
  constexpr int64_t kNumel = 70003;
  Tensor want = at::randn({kNumel});
  want.narrow(0, 100, 5000).fill_(1 + 1.0 / 256);  // Halfway, and rounded down
  const Tensor rounded = Placed(want.to(at::kBFloat16));
  SplitMaster split(kNumel, rounded.device());
  const MasterRun all{.plain = {}, .rounded = rounded, .split = &split};
  all.Keep(Placed(want));
  EXPECT_EQ(DifferingBits(all.Read(), want), 0);
  for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 1}, {31, 2}, {45, 11}, {3000, 3007}, {6016, 64}, {kNumel - 40000, 40000}}) {
    const Tensor fresh = at::randn({count});
    const MasterRun run = all.Narrow(begin, count);
    run.RoundAndKeep(Placed(fresh));
    want.narrow(0, begin, count).copy_(fresh);
    EXPECT_EQ(DifferingBits(all.Read(), want), 0) << begin << ", " << count;
    EXPECT_EQ(DifferingBits(run.Read(), fresh), 0) << begin << ", " << count;
  }
}

}  // namespace
}  // namespace shoal
