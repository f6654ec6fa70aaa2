#include "parallel/split_master.h"

#include <cstring>
#include <random>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

// Every pattern of the upper bits, with the lower ones that rounding treats apart and random ones.
std::vector<uint32_t> AwkwardBits() {
  std::vector<uint32_t> bits;
  std::mt19937 random(3);
  std::uniform_int_distribution<uint32_t> any(0, 0xFFFF);
  for (uint32_t high = 0; high < 1 << 16; ++high) {
    for (uint32_t low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu, any(random)})
      bits.push_back(high << 16 | low);
  }
  return bits;
}

Tensor FromBits(const std::vector<uint32_t>& bits) {
  Tensor x = at::empty({static_cast<int64_t>(bits.size())}, at::kFloat);
  std::memcpy(x.mutable_data_ptr(), bits.data(), bits.size() * sizeof(uint32_t));
  return x;
}

int64_t Differing(const Tensor& a, const Tensor& b) {
  return a.view(at::kInt).ne(b.view(at::kInt)).sum().item<int64_t>();
}

TEST(SplitMaster, GivesBackEveryBit) {
  const Tensor masters = FromBits(AwkwardBits());
  // As they round here, and as a processor rounds that takes denormals for zeros.
  Tensor flushed = masters.to(at::kBFloat16);
  flushed.masked_fill_(masters.abs().lt(1.1754944e-38), 0);
  for (const Tensor& rounded : {masters.to(at::kBFloat16), flushed}) {
    SplitMaster split(masters.numel());
    split.Split(0, masters, rounded);
    Tensor joined = at::empty_like(masters);
    split.Join(0, rounded, joined);
    EXPECT_EQ(Differing(joined, masters), 0);
    EXPECT_GT(split.kept_whole(), 0);
    EXPECT_EQ(split.nbytes(), 2 * masters.numel());
  }
}

TEST(SplitMaster, KeepsFewWhole) {
  const Tensor masters = at::randn({1 << 22});
  SplitMaster split(masters.numel());
  split.Split(0, masters, masters.to(at::kBFloat16));
  EXPECT_NEAR(static_cast<double>(split.kept_whole()), (1 << 22) / 131072.0, 25);
}

TEST(SplitMaster, RunsAreWrittenAlone) {
  constexpr int64_t kNumel = 3 << 16;
  const Tensor ties = at::full({kNumel}, 1 + 1.0 / 256);  // Halfway, and rounded down
  const Tensor before = ties.to(at::kBFloat16);
  ASSERT_EQ(before[0].item<float>(), 1.0f);
  SplitMaster split(kNumel);
  split.Split(0, ties, before);
  EXPECT_EQ(split.kept_whole(), kNumel);
  const int64_t begin = 60000, count = 90001;
  MasterRun all{.plain = {}, .rounded = before, .split = &split};
  const MasterRun run = all.Narrow(begin, count);
  const Tensor fresh = at::randn({count});
  run.RoundAndKeep(fresh);
  Tensor want = ties.clone();
  want.narrow(0, begin, count).copy_(fresh);
  EXPECT_EQ(Differing(all.Read(), want), 0);
  EXPECT_EQ(Differing(run.Read(), fresh), 0);
}

}  // namespace
}  // namespace shoal
