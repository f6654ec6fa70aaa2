#include "trainer/rlhf/environment.h"

#include <cmath>
#include <set>

#include <gtest/gtest.h>

namespace shoal {
namespace {

// States as the arithmetic of Gym's cartpole.py gives them, worked out apart from this code.
TEST(CartPole, MovesAsGyms) {
  CartPole environment;
  environment.Reset(1);
  environment.set_state({0.01, -0.02, 0.03, 0.04});
  const std::vector<std::pair<int64_t, std::vector<double>>> wanted = {
      {1, {0.009600000000000001, 0.17467919574755525, 0.030799999999999998, -0.2430687179600081}},
      {1, {0.013093583914951107, 0.3693479760579556, 0.025938625640799837, -0.5258796280501483}},
      {0, {0.02048054343611022, 0.17387081260481596, 0.01542103307979687, -0.22513741609237464}},
      {1, {0.02395795968820654, 0.3687690101747617, 0.010918284757949377, -0.5129163478026587}}};
  for (const auto& [action, state] : wanted) {
    const EnvironmentStep step = environment.Step(action);
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(step.observation[i], state[i], 1e-15);
    EXPECT_EQ(step.reward, 1);
    EXPECT_FALSE(step.terminated || step.truncated);
  }
}

TEST(CartPole, EpisodesEnd) {
  CartPole environment;
  environment.Reset(3);
  int64_t steps = 1;
  while (!environment.Step(1).terminated) ++steps;
  EXPECT_LT(steps, 15);

  environment.Reset(3);
  environment.set_state({2.39, 5, 0, 0});
  EXPECT_TRUE(environment.Step(1).terminated);

  environment.Reset(3);
  EnvironmentStep step;
  for (int64_t i = 1; i <= 500; ++i) {
    EXPECT_FALSE(step.truncated);
    environment.set_state({0, 0, 0, 0});
    step = environment.Step(i % 2);
  }
  EXPECT_TRUE(step.truncated);
  EXPECT_FALSE(step.terminated);
}

TEST(CartPole, BeginsByItsSeed) {
  CartPole one, other;
  EXPECT_EQ(one.Reset(7), other.Reset(7));
  std::set<double> places;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (double value : one.Reset(seed)) {
      EXPECT_LE(std::abs(value), 0.05);
      places.insert(value);
    }
  }
  EXPECT_EQ(places.size(), 400u);
}

}  // namespace
}  // namespace shoal
