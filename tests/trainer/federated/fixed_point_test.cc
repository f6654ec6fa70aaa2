#include "trainer/federated/fixed_point.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/random.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

Tensor Update(uint64_t client, int64_t numel, at::ScalarType dtype) {
  Tensor update = at::empty({numel}, dtype);
  FillNormal(update, Philox(7, client), 0, 0.3);
  return update;
}

TEST(FixedPoint, FractionLeavesHeadroomOfOneBit) {
  EXPECT_EQ(PlanFixedPoint(64, 32768)->fraction_bits, 41);  // 62 - 21
  EXPECT_EQ(PlanFixedPoint(64, 32769)->fraction_bits, 40);
  EXPECT_EQ(PlanFixedPoint(64, 1)->fraction_bits, 56);
  EXPECT_EQ(PlanFixedPoint(0.001, 1)->fraction_bits, 71);
  EXPECT_EQ(PlanFixedPoint(64, 32768)->step(), 0x1p-41);
}

TEST(FixedPoint, PlanRefusesWhatCannotBeHeld) {
  EXPECT_TRUE(PlanFixedPoint(64, 0x1p38).ok());
  EXPECT_THAT(PlanFixedPoint(64, 0x1p39).status().message(), testing::HasSubstr("2^38"));
  for (double wrong : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(PlanFixedPoint(wrong, 1).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(PlanFixedPoint(1, wrong).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(FixedPoint, RoundsToTheNearestEven) {
  const FixedPoint format = *PlanFixedPoint(64, 1);
  std::vector<double> values = {0.0, -0.0, 64, -64, 1.0 / 3, -1.0 / 3, 63.99999999999999, 0x1p-57};
  for (int units : {1, 2, 3, 5, 4097}) {
    for (double half : {0.5, 0.25, 0.75}) {
      values.push_back((units + half) * format.step());
      values.push_back(-(units + half) * format.step());
    }
  }
  for (int k = 0; k < 1000; ++k) values.push_back((Philox(3).Uniform(k) - 0.5) * 128);
  const Tensor update = at::tensor(values, at::kDouble);
  Tensor sums = at::zeros({update.numel()}, at::kLong);
  ASSERT_TRUE(AddFixedPoint(update, 1, format, sums).ok());
  for (size_t k = 0; k < values.size(); ++k) {
    const int64_t want = std::llrint(std::ldexp(values[k], format.fraction_bits));
    EXPECT_EQ(sums[k].item<int64_t>(), want) << values[k];
  }
}

class FixedPointTypes : public testing::TestWithParam<at::ScalarType> {};

TEST_P(FixedPointTypes, AnyOrderAndAnySplitGiveTheSameBits) {
  constexpr int kClients = 23;
  constexpr int64_t kSize = 10'007;
  std::vector<double> weights;
  for (int client = 0; client < kClients; ++client)
    weights.push_back(1 + 37 * client % 11 + 0.1 * client);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  const FixedPoint format = *PlanFixedPoint(8, total);

  Tensor expected = at::zeros({kSize}, at::kDouble), in_order = at::zeros({kSize}, at::kLong);
  for (int client = 0; client < kClients; ++client) {
    const Tensor update = Update(client, kSize, GetParam());
    ASSERT_TRUE(AddFixedPoint(update, weights[client], format, in_order).ok());
    expected.add_(update.to(at::kDouble), weights[client]);
  }
  // Clients backwards, on three ranks.
  std::vector<Tensor> ranks;
  for (int rank = 0; rank < 3; ++rank) ranks.push_back(at::zeros({kSize}, at::kLong));
  for (int client = kClients - 1; client >= 0; --client) {
    const Tensor update = Update(client, kSize, GetParam());
    ASSERT_TRUE(AddFixedPoint(update, weights[client], format, ranks[client * 5 % 3]).ok());
  }
  EXPECT_TRUE(at::equal(ranks[2] + ranks[0] + ranks[1], in_order));

  Tensor mean = at::empty({kSize}, at::kDouble);
  DecodeFixedPoint(in_order, format, total, mean);
  const double bound = (0.5 * kClients * format.step()) / total + 1e-15;
  EXPECT_LE((mean - expected / total).abs().max().item<double>(), bound);
}

INSTANTIATE_TEST_SUITE_P(All, FixedPointTypes, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return c10::toString(info.param); });

TEST(FixedPoint, TheLargestSumFits) {
  const FixedPoint format = *PlanFixedPoint(100, 1000);
  for (double sign : {1.0, -1.0}) {
    Tensor sums = at::zeros({3}, at::kLong);
    for (int client = 0; client < 100; ++client) {
      ASSERT_TRUE(AddFixedPoint(at::full({3}, sign * 100, at::kFloat), 10, format, sums).ok());
    }
    Tensor total = at::empty({3}, at::kDouble);
    DecodeFixedPoint(sums, format, 1, total);
    EXPECT_EQ(total[1].item<double>(), sign * 100'000);
  }
}

TEST(FixedPoint, OverflowIsNamedAndLeavesTheSumsAlone) {
  const FixedPoint format = *PlanFixedPoint(2, 10);
  constexpr int64_t kSize = 300'000;
  const double infinity = std::numeric_limits<double>::infinity();
  for (const auto& [value, text] :
       std::vector<std::pair<double, std::string>>{{2.0001, "2.0001"},
                                                   {-2.0001, "-2.0001"},
                                                   {std::nan(""), "nan"},
                                                   {infinity, "inf"},
                                                   {-infinity, "-inf"},
                                                   {3e38, "3e+38"}}) {
    for (at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      Tensor sums = at::zeros({kSize}, at::kLong);
      ASSERT_TRUE(AddFixedPoint(Update(1, kSize, dtype), 3, format, sums).ok());
      const Tensor before = sums.clone();
      Tensor update = Update(2, kSize, dtype);
      update[123'456] = value;
      update[200'000] = std::nan("");
      const absl::Status status = AddFixedPoint(update, 3, format, sums);
      EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
      EXPECT_THAT(
          std::string(status.message()),
          testing::AllOf(testing::HasSubstr("element 123456 of an update is " + text.substr(0, 5)),
                         testing::HasSubstr("[-2, 2]")));
      EXPECT_TRUE(at::equal(sums, before));
    }
  }
}

TEST(FixedPoint, RefusesWeightsBeyondThePlan) {
  const FixedPoint format = *PlanFixedPoint(2, 10);
  Tensor sums = at::zeros({4}, at::kLong);
  for (double weight : {-1.0, 10.5, std::nan("")}) {
    EXPECT_EQ(AddFixedPoint(at::ones({4}), weight, format, sums).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(FixedPoint, ThreadsDoNotChangeBits) {
  constexpr int64_t kSize = 1'000'003;
  const Tensor update = Update(5, kSize, at::kFloat);
  const FixedPoint format = *PlanFixedPoint(4, 3);
  const int threads = GetNumThreads();
  std::vector<Tensor> all;
  for (int count : {1, 2, 3}) {
    SetNumThreads(count);
    Tensor sums = at::zeros({kSize}, at::kLong);
    ASSERT_TRUE(AddFixedPoint(update, 0.7, format, sums).ok());
    all.push_back(sums);
  }
  SetNumThreads(threads);
  EXPECT_TRUE(at::equal(all[0], all[1]));
  EXPECT_TRUE(at::equal(all[0], all[2]));
}

}  // namespace
}  // namespace shoal
