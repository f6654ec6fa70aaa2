// Expected values: tests/fixtures/make_federated_fixtures.py (mpmath, Opacus, dp_accounting), and
// published ones.
#include "trainer/federated/privacy_accountant.h"

#include <cmath>
#include <fstream>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace shoal {
namespace {

nlohmann::json Fixture(const std::string& part) {
  std::ifstream file("tests/fixtures/federated.json");
  return nlohmann::json::parse(file)[part];
}

double Epsilon(const std::vector<PrivacyEvent>& events, double delta) {
  PrivacyAccountant accountant;
  for (const PrivacyEvent& event : events) {
    const absl::Status status = accountant.Compose(event);
    EXPECT_TRUE(status.ok()) << status;
  }
  return accountant.Spent(delta).epsilon;
}

TEST(PrivacyAccountant, DivergencesEqualNumericalIntegration) {
  const auto cases = Fixture("rdp");
  ASSERT_GE(cases.size(), 9u);
  for (const auto& c : cases) {
    for (size_t k = 0; k < c["orders"].size(); ++k) {
      const double want = c["rdp"][k];
      const double got = SubsampledGaussianRdp(c["orders"][k], c["q"], c["z"]);
      EXPECT_NEAR(got, want, 1e-9 * want + 1e-13)
          << "q " << c["q"] << " z " << c["z"] << " order " << c["orders"][k];
    }
  }
}

TEST(PrivacyAccountant, EpsilonsEqualThoseOfOtherAccountants) {
  const auto cases = Fixture("epsilon");
  ASSERT_GE(cases.size(), 10u);
  for (const auto& c : cases) {
    PrivacyAccountant accountant;
    for (const auto& event : c["events"]) {
      ASSERT_TRUE(
          accountant
              .Compose(
                  {.sampling_rate = event[0], .noise_multiplier = event[1], .rounds = event[2]})
              .ok());
    }
    const PrivacySpent spent = accountant.Spent(c["delta"]);
    const double want = c["epsilon"];
    EXPECT_NEAR(spent.epsilon, want, 1e-7 * want) << c;
    EXPECT_NEAR(spent.order, c["order"], 1e-9) << c;
    // dp_accounting bounds fractional orders from above: farther off where the best order is small.
    const double above = c["dp_accounting"];
    EXPECT_GE(above, spent.epsilon * (1 - 1e-9)) << c;
    if (spent.order > 2.5) {
      EXPECT_LE(above, spent.epsilon * 1.01) << c;
    }
  }
}

TEST(PrivacyAccountant, PublishedEpsilons) {
  EXPECT_NEAR(Epsilon({{0.04, 1.5, 2250}}, 1e-5), 7.32911117143, 1e-8);  // Opacus' tests
  EXPECT_NEAR(Epsilon({{1, 4.530877117, 1}}, 1e-6), 1, 1e-6);            // dp_accounting's tests
  EXPECT_NEAR(Epsilon({{1e-3, 1, 1500}}, 1e-6), 0.8758, 5e-5);
  // The exact epsilon of three Gaussians at this delta is 1; Renyi's must be above.
  EXPECT_GT(Epsilon({{1, std::sqrt(3.0), 3}}, 0.126936), 1);
  EXPECT_NEAR(SubsampledGaussianRdp(2, 1, 1.5), 2 / (2 * 1.5 * 1.5), 1e-15);
}

TEST(PrivacyAccountant, EpsilonGrowsWithRoundsAndSamplingAndFallsWithNoise) {
  double last = 0;
  for (int64_t rounds : {1, 10, 100, 1000, 10'000}) {
    const double epsilon = Epsilon({{0.02, 1.1, rounds}}, 1e-6);
    EXPECT_GT(epsilon, last);
    last = epsilon;
  }
  EXPECT_GT(Epsilon({{0.03, 1.1, 100}}, 1e-6), Epsilon({{0.02, 1.1, 100}}, 1e-6));
  EXPECT_LT(Epsilon({{0.02, 1.2, 100}}, 1e-6), Epsilon({{0.02, 1.1, 100}}, 1e-6));
  EXPECT_LT(Epsilon({{0.02, 1.1, 100}}, 1e-5), Epsilon({{0.02, 1.1, 100}}, 1e-6));
}

TEST(PrivacyAccountant, Edges) {
  EXPECT_EQ(Epsilon({}, 1e-6), 0);
  EXPECT_EQ(Epsilon({{0, 1, 100}}, 1e-6), 0);
  EXPECT_EQ(Epsilon({{0.1, 0, 1}}, 1e-6), std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isfinite(Epsilon({{0.5, 0.05, 3}}, 1e-6)));
  EXPECT_GT(Epsilon({{1e-9, 0.5, 1}}, 1e-6), -1e-300);
  PrivacyAccountant accountant;
  for (const PrivacyEvent& wrong : std::vector<PrivacyEvent>{
           {-0.1, 1, 1}, {1.1, 1, 1}, {std::nan(""), 1, 1}, {0.1, -1, 1}, {0.1, 1, -1}}) {
    EXPECT_EQ(accountant.Compose(wrong).code(), absl::StatusCode::kInvalidArgument);
  }
}

// A resumed run composes its history again and goes on: the same bits as one that never stopped.
TEST(PrivacyAccountant, HistoryRestoresTheAccountant) {
  PrivacyAccountant whole;
  for (int round = 0; round < 50; ++round) ASSERT_TRUE(whole.Compose({0.03, 0.9, 1}).ok());
  for (int round = 0; round < 20; ++round) ASSERT_TRUE(whole.Compose({0.03, 1.4, 1}).ok());
  ASSERT_EQ(whole.history().size(), 2u);
  EXPECT_EQ(whole.history()[0].rounds, 50);

  PrivacyAccountant resumed;
  for (const PrivacyEvent& event : whole.history()) ASSERT_TRUE(resumed.Compose(event).ok());
  EXPECT_EQ(resumed.Spent(1e-6).epsilon, whole.Spent(1e-6).epsilon);
  ASSERT_TRUE(resumed.Compose({0.03, 1.4, 1}).ok());
  ASSERT_TRUE(whole.Compose({0.03, 1.4, 1}).ok());
  EXPECT_EQ(resumed.Spent(1e-6).epsilon, whole.Spent(1e-6).epsilon);
}

TEST(PrivacyAccountant, CalibrationFindsTheSmallestMultiplier) {
  for (const auto& c : Fixture("calibrate")) {
    const auto z = CalibrateNoiseMultiplier(c["epsilon"], c["delta"], c["q"], c["rounds"]);
    ASSERT_TRUE(z.ok()) << z.status();
    const double want = c["noise_multiplier"];
    EXPECT_NEAR(*z, want, 3e-6 * want) << c;
    EXPECT_LE(Epsilon({{c["q"], *z, c["rounds"]}}, c["delta"]), c["epsilon"].get<double>());
  }
  EXPECT_EQ(CalibrateNoiseMultiplier(0, 1e-6, 0.1, 10).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CalibrateNoiseMultiplier(1, 1, 0.1, 10).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CalibrateNoiseMultiplier(1, 1e-6, 0, 10).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CalibrateNoiseMultiplier(1, 1e-6, 0.1, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CalibrateNoiseMultiplier(1e-9, 1e-9, 1, 1'000'000'000).status().code(),
            absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace shoal
