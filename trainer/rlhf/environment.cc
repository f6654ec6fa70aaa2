#include "trainer/rlhf/environment.h"

#include <cmath>
#include <numbers>

#include "core/random.h"
#include "core/status.h"

namespace shoal {

std::vector<double> CartPole::Reset(uint64_t seed) {
  const Philox philox(seed, StreamId("cartpole"));
  state_.clear();
  for (uint64_t i = 0; i < 4; ++i) state_.push_back(0.1 * philox.Uniform(i) - 0.05);
  steps_ = 0;
  return state_;
}

EnvironmentStep CartPole::Step(int64_t action) {
  constexpr double kGravity = 9.8, kCartMass = 1.0, kPoleMass = 0.1, kHalfPole = 0.5, kForce = 10.0,
                   kSeconds = 0.02, kMostPlace = 2.4,
                   kMostAngle = 12.0 * 2.0 * std::numbers::pi / 360.0;
  constexpr int64_t kMostSteps = 500;
  SHOAL_CHECK(action == 0 || action == 1) << "action " << action;
  const double x = state_[0], speed = state_[1], angle = state_[2], turning = state_[3];
  const double force = action == 1 ? kForce : -kForce;
  const double mass = kCartMass + kPoleMass;
  const double push = (force + kPoleMass * kHalfPole * turning * turning * std::sin(angle)) / mass;
  const double turn_rate =
      (kGravity * std::sin(angle) - std::cos(angle) * push) /
      (kHalfPole * (4.0 / 3.0 - kPoleMass * std::cos(angle) * std::cos(angle) / mass));
  const double rate = push - kPoleMass * kHalfPole * turn_rate * std::cos(angle) / mass;
  state_ = {x + kSeconds * speed, speed + kSeconds * rate, angle + kSeconds * turning,
            turning + kSeconds * turn_rate};
  ++steps_;
  EnvironmentStep step{.observation = state_, .reward = 1};
  step.terminated = std::abs(state_[0]) > kMostPlace || std::abs(state_[2]) > kMostAngle;
  step.truncated = !step.terminated && steps_ >= kMostSteps;
  return step;
}

}  // namespace shoal
