// What a policy acts in, as Gym has it (Brockman et al. 2016; Towers et al. 2024): it is reset to a
// first observation, and each action yields the next one and a reward until an episode ends.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace shoal {

struct EnvironmentStep {
  std::vector<double> observation;
  double reward = 0;
  bool terminated = false;  // The episode is over: nothing follows
  bool truncated = false;   // It was cut short: more would have followed
};

class Environment {
 public:
  virtual ~Environment() = default;
  virtual int64_t observation_size() const = 0;
  virtual int64_t num_actions() const = 0;
  // Begins an episode that is a function of `seed` and the actions.
  virtual std::vector<double> Reset(uint64_t seed) = 0;
  // 0 <= action < num_actions(); not after an end.
  virtual EnvironmentStep Step(int64_t action) = 0;
};

using MakeEnvironment = std::function<std::unique_ptr<Environment>()>;

// A pole on a cart that is pushed left (0) or right (1): Barto, Sutton & Anderson 1983, with the
// constants and the order of Euler's steps of Gym's CartPole-v1. Observations: the cart's place and
// speed, the pole's angle and its speed, from a first one uniform in +-0.05. Reward 1 a step;
// terminated beyond +-2.4 or +-12 degrees; truncated after 500 steps.
class CartPole final : public Environment {
 public:
  int64_t observation_size() const override { return 4; }
  int64_t num_actions() const override { return 2; }
  std::vector<double> Reset(uint64_t seed) override;
  EnvironmentStep Step(int64_t action) override;

  // For tests: goes on from here.
  void set_state(const std::vector<double>& state) { state_ = state; }

 private:
  std::vector<double> state_;  // place, speed, angle, angular speed
  int64_t steps_ = 0;
};

}  // namespace shoal
