// Expected values: numpy, scipy and Flower, read off by tests/fixtures/make_federated_fixtures.py.
#include "trainer/federated/robust_aggregation.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/random.h"
#include "kernels/threads.h"
#include "trainer/federated/sorting_network.h"

namespace shoal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<Tensor> Updates(int clients, int64_t size, at::ScalarType dtype, double mean = 0) {
  std::vector<Tensor> updates;
  for (int client = 0; client < clients; ++client) {
    Tensor update = at::empty({size}, dtype);
    FillNormal(update, Philox(21, client), 0, 1);
    updates.push_back(update.add_(mean));
  }
  return updates;
}

Tensor Median(const std::vector<Tensor>& updates) {
  Tensor out = at::empty_like(updates[0]);
  const absl::Status status = CoordinateMedian(updates, out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

Tensor Trimmed(const std::vector<Tensor>& updates, double trim) {
  Tensor out = at::empty_like(updates[0]);
  const absl::Status status = TrimmedMean(updates, trim, out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

Tensor Distances(const std::vector<Tensor>& updates) {
  const int64_t n = static_cast<int64_t>(updates.size());
  Tensor distances = at::zeros({n, n}, at::kDouble);
  const absl::Status status = AddSquaredDistances(updates, distances);
  EXPECT_TRUE(status.ok()) << status;
  return distances;
}

Tensor FromJson(const nlohmann::json& values) {
  return at::tensor(values.get<std::vector<double>>(), at::kDouble);
}

double LargestError(const Tensor& got, const Tensor& want) {
  return (got - want).abs().max().item<double>();
}

// A network that sorts all zero-one inputs sorts everything (Knuth 5.3.4).
TEST(SortingNetwork, SortsAllZeroOneInputs) {
  for (int n = 1; n <= 13; ++n) {
    const auto network = SortingNetwork(n, 0, n);
    for (int bits = 0; bits < 1 << n; ++bits) {
      std::vector<int> rows(n);
      for (int row = 0; row < n; ++row) rows[row] = bits >> row & 1;
      for (const auto& step : network) {
        ASSERT_LT(step.low, step.high);
        if (rows[step.high] < rows[step.low]) std::swap(rows[step.low], rows[step.high]);
      }
      ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end())) << n << " rows, input " << bits;
    }
  }
}

TEST(SortingNetwork, PutsTheAskedRowsInTheirPlaces) {
  for (int n : {2, 7, 16, 33, 100, 257}) {
    std::vector<uint64_t> values(n);
    for (int row = 0; row < n; ++row) values[row] = Philox(4, n).Bits(row);
    std::vector<uint64_t> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    const int first = (n - 1) / 2, last = n / 2 + 1;
    const auto network = SortingNetwork(n, first, last);
    for (const auto& step : network) {
      if (values[step.high] < values[step.low]) std::swap(values[step.low], values[step.high]);
    }
    for (int row = first; row < last; ++row) EXPECT_EQ(values[row], sorted[row]) << n;
    if (n > 3) {
      EXPECT_LT(network.size(), SortingNetwork(n, 0, n).size());
    }
  }
}

TEST(RobustAggregation, EqualsNumpyScipyAndFlower) {
  std::ifstream file("tests/fixtures/federated.json");
  const auto cases = nlohmann::json::parse(file)["robust"];
  ASSERT_GE(cases.size(), 4u);
  for (const auto& c : cases) {
    std::vector<Tensor> updates;
    for (const auto& update : c["updates"]) updates.push_back(FromJson(update));
    EXPECT_EQ(LargestError(Median(updates), FromJson(c["median"])), 0);
    EXPECT_LT(LargestError(Trimmed(updates, c["trim"]), FromJson(c["trimmed"])), 1e-14);
    const Tensor distances = Distances(updates);
    for (size_t i = 0; i < updates.size(); ++i) {
      EXPECT_LT(LargestError(distances[i], FromJson(c["distances"][i])), 1e-9);
    }
    const int f = c["byzantine"], m = c["selected"];
    EXPECT_TRUE(at::equal(updates[SelectKrum(distances, f, 1)->at(0)], FromJson(c["krum"])));
    Tensor mean = at::zeros_like(updates[0]);
    const std::vector<int> best = *SelectKrum(distances, f, m);
    for (int client : best) mean.add_(updates[client]);
    EXPECT_LT(LargestError(mean / m, FromJson(c["multi_krum"])), 1e-13);
  }
}

class RobustTypes : public testing::TestWithParam<at::ScalarType> {};

TEST_P(RobustTypes, CoordinateRulesEqualPlainSorting) {
  for (int n : {1, 2, 3, 10, 31, 100}) {
    const auto updates = Updates(n, 3001, GetParam());
    const Tensor sorted = std::get<0>(at::stack(updates).to(at::kDouble).sort(0));
    const Tensor median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
    EXPECT_LT(LargestError(Median(updates).to(at::kDouble), median), 2e-7);
    for (double trim : {0.0, 0.1, 0.34, 0.49}) {
      const int64_t dropped = static_cast<int64_t>(trim * n);
      const Tensor mean = sorted.narrow(0, dropped, n - 2 * dropped).mean(0);
      EXPECT_LT(LargestError(Trimmed(updates, trim).to(at::kDouble), mean), 3e-7)
          << n << " " << trim;
    }
  }
}

TEST_P(RobustTypes, OrderOfClientsSlicesAndThreadsDoNotChangeBits) {
  constexpr int64_t kSize = 20'000;
  auto updates = Updates(17, kSize, GetParam());
  for (auto& update : updates) update.masked_fill_(update.abs() < 0.3, 0).mul_(-1);  // -0 and 0
  updates[3].mul_(-1);
  const Tensor median = Median(updates), trimmed = Trimmed(updates, 0.2);
  std::vector<Tensor> permuted;
  for (int client = 0; client < 17; ++client) permuted.push_back(updates[client * 5 % 17]);
  const auto bits = [](const Tensor& x) {
    return x.view(x.element_size() == 4 ? at::kInt : at::kLong);
  };
  const int threads = GetNumThreads();
  SetNumThreads(3);
  EXPECT_TRUE(at::equal(bits(Median(permuted)), bits(median)));
  EXPECT_TRUE(at::equal(bits(Trimmed(permuted, 0.2)), bits(trimmed)));
  SetNumThreads(threads);
  Tensor sliced = at::empty_like(median);
  for (int64_t at = 0; at < kSize; at += 7000) {
    std::vector<Tensor> slices;
    for (const auto& update : updates)
      slices.push_back(update.narrow(0, at, std::min<int64_t>(7000, kSize - at)));
    sliced.narrow(0, at, slices[0].numel()).copy_(Median(slices));
  }
  EXPECT_TRUE(at::equal(bits(sliced), bits(median)));
}

// Whatever a tolerable number of attackers sends, each coordinate stays within the honest ones.
TEST_P(RobustTypes, CoordinateRulesBearTheirNumberOfAttackersAndNoMore) {
  constexpr int kClients = 11;
  for (double attack : {1e30, -1e30, kInfinity, -kInfinity, std::nan("")}) {
    const auto attacked = [&](int attackers) {
      auto updates = Updates(kClients, 500, GetParam(), 1);
      for (int k = 0; k < attackers; ++k) updates[(k * 3) % kClients].fill_(attack);
      return updates;
    };
    const auto check = [&](const std::vector<Tensor>& updates, const Tensor& result, bool bears) {
      bool inside = true;
      for (int64_t p = 0; p < 500; ++p) {
        double low = kInfinity, high = -kInfinity;
        for (const auto& update : updates) {
          const double value = update[p].item<double>();
          if (!(std::abs(value) < 1e6)) continue;
          low = std::min(low, value);
          high = std::max(high, value);
        }
        const double value = result[p].item<double>();
        inside = inside && value >= low - 1e-5 && value <= high + 1e-5;
      }
      EXPECT_EQ(inside, bears) << attack << ", " << updates.size();
    };
    check(attacked(5), Median(attacked(5)), true);
    check(attacked(6), Median(attacked(6)), false);
    check(attacked(3), Trimmed(attacked(3), 0.3), true);
    check(attacked(4), Trimmed(attacked(4), 0.3), false);
  }
}

TEST_P(RobustTypes, KrumSelectsNoAttacker) {
  constexpr int kClients = 13, kAttackers = 5;
  for (double attack : {5.0, 1e30, kInfinity, std::nan("")}) {
    auto updates = Updates(kClients, 5000, GetParam(), 1);
    for (int k = 0; k < kAttackers; ++k) {
      updates[k].add_(-6);
      updates[k][17] = attack;
    }
    const auto selected = SelectKrum(Distances(updates), kAttackers, kClients - kAttackers);
    ASSERT_TRUE(selected.ok()) << selected.status();
    EXPECT_EQ(selected->size(), static_cast<size_t>(kClients - kAttackers));
    for (int client : *selected) EXPECT_GE(client, kAttackers) << attack;
  }
}

TEST_P(RobustTypes, DistancesOfSlicesAddUpToTheSameBits) {
  constexpr int64_t kSize = 10'000, kCut = 4 * 1024;
  const auto updates = Updates(9, kSize, GetParam());
  const Tensor whole = Distances(updates);
  EXPECT_NEAR(whole[2][5].item<double>(),
              (updates[2] - updates[5]).to(at::kDouble).square().sum().item<double>(), 1e-2);
  EXPECT_TRUE(at::equal(whole, whole.t()));
  Tensor sliced = at::zeros({9, 9}, at::kDouble);
  for (const auto& [begin, size] :
       std::vector<std::pair<int64_t, int64_t>>{{0, kCut}, {kCut, kSize - kCut}}) {
    std::vector<Tensor> slices;
    for (const auto& update : updates) slices.push_back(update.narrow(0, begin, size));
    ASSERT_TRUE(AddSquaredDistances(slices, sliced).ok());
  }
  EXPECT_TRUE(at::equal(sliced, whole));
}

INSTANTIATE_TEST_SUITE_P(All, RobustTypes, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) { return c10::toString(info.param); });

TEST(RobustAggregation, KrumRefusesMoreAttackersThanItBears) {
  const auto updates = Updates(8, 10, at::kFloat);
  const Tensor distances = Distances(updates);
  EXPECT_TRUE(SelectKrum(distances, 2, 6).ok());
  EXPECT_THAT(std::string(SelectKrum(distances, 3, 1).status().message()),
              testing::HasSubstr("3 Byzantine clients of at least 9, there are 8"));
  EXPECT_EQ(SelectKrum(distances, 2, 7).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SelectKrum(distances, 2, 0).status().code(), absl::StatusCode::kInvalidArgument);
  auto broken = updates;
  for (int k = 0; k < 5; ++k) broken[k] = at::full({10}, std::nan(""), at::kFloat);
  EXPECT_EQ(SelectKrum(Distances(broken), 2, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(RobustAggregation, RefusesUpdatesThatDoNotMatch) {
  Tensor out = at::empty({10});
  EXPECT_EQ(CoordinateMedian({}, out).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(CoordinateMedian({at::ones({10}), at::ones({9})}, out).message()),
              testing::HasSubstr("update 1 has 9"));
  EXPECT_FALSE(TrimmedMean({at::ones({10})}, 0.5, out).ok());
  EXPECT_FALSE(TrimmedMean({at::ones({10})}, -0.1, out).ok());
}

}  // namespace
}  // namespace shoal
