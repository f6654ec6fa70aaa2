#include "trainer/federated/round_plan.h"

#include <algorithm>
#include <numeric>

#include "core/random.h"
#include "data/sequence_sampler.h"

namespace shoal {
namespace {

class SynchronousPlanner final : public RoundPlanner {
 public:
  SynchronousPlanner(const FederatedSection& federated, const Population& population)
      : federated_(federated),
        seed_(population.seed),
        num_clients_(static_cast<int64_t>(population.steps.size())) {}

  RoundPlan Plan(int64_t round) override {
    planned_ = round;
    RoundPlan plan{.round = round, .tasks = {}};
    const Philox coins(seed_, StreamId("federated.dropout"));
    for (int64_t client : Cohort(round)) {
      const auto index = static_cast<uint64_t>(round * num_clients_ + client);
      plan.tasks.push_back({.client = client,
                            .visit = round,
                            .version = round,
                            .dropped = coins.Uniform(index) < federated_.dropout()});
    }
    return plan;
  }

  int64_t OldestVersionNeeded() const override { return planned_ + 1; }

 private:
  std::vector<int64_t> Cohort(int64_t round) const {
    std::vector<int64_t> cohort;
    const int64_t wanted =
        federated_.clients_per_round() > 0 ? federated_.clients_per_round() : num_clients_;
    if (federated_.sampling() == FederatedSection::poisson) {
      const Philox coins(seed_, StreamId("federated.coins"));
      const double rate = static_cast<double>(wanted) / static_cast<double>(num_clients_);
      for (int64_t client = 0; client < num_clients_; ++client) {
        if (coins.Uniform(static_cast<uint64_t>(round * num_clients_ + client)) < rate)
          cohort.push_back(client);
      }
      return cohort;
    }
    const uint64_t seed = Philox(seed_, StreamId("federated.cohort")).Bits(0);
    const ShufflePermutation shuffled(seed, round, num_clients_);
    for (int64_t i = 0; i < wanted; ++i) cohort.push_back(wanted < num_clients_ ? shuffled(i) : i);
    std::sort(cohort.begin(), cohort.end());
    return cohort;
  }

  const FederatedSection federated_;
  const uint64_t seed_;
  const int64_t num_clients_;
  int64_t planned_ = -1;
};

}  // namespace

std::unique_ptr<RoundPlanner> MakeSynchronousPlanner(const FederatedSection& federated,
                                                     const Population& population) {
  return std::make_unique<SynchronousPlanner>(federated, population);
}

std::vector<ClientStack> StackTasks(const RoundPlan& plan, const Population& population, int most) {
  const auto steps_of = [&](int task) { return population.steps[plan.tasks[task].client]; };
  std::vector<int> order;
  for (int i = 0; i < static_cast<int>(plan.tasks.size()); ++i) {
    if (!plan.tasks[i].dropped) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return steps_of(a) > steps_of(b); });
  std::vector<ClientStack> stacks;
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    while (end < order.size() && steps_of(order[end]) == steps_of(order[begin])) ++end;
    const size_t tasks = end - begin, count = (tasks + most - 1) / most;
    for (size_t i = 0; i < count; ++i) {
      const auto first = order.begin() + static_cast<int64_t>(begin);
      stacks.push_back({.tasks = {first + static_cast<int64_t>(tasks * i / count),
                                  first + static_cast<int64_t>(tasks * (i + 1) / count)},
                        .steps = steps_of(order[begin])});
    }
    begin = end;
  }
  return stacks;
}

std::vector<int> AssignStacks(absl::Span<const ClientStack> stacks, int groups,
                              FederatedSection::Assignment assignment) {
  std::vector<int> group_of(stacks.size());
  if (assignment == FederatedSection::round_robin) {
    for (size_t i = 0; i < stacks.size(); ++i) group_of[i] = static_cast<int>(i) % groups;
    return group_of;
  }
  const auto cost = [&](int stack) {
    return stacks[stack].steps * static_cast<int64_t>(stacks[stack].tasks.size());
  };
  std::vector<int> order(stacks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost(a) > cost(b); });
  std::vector<int64_t> load(groups, 0);
  for (int stack : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += cost(stack);
    group_of[stack] = static_cast<int>(least - load.begin());
  }
  return group_of;
}

double Imbalance(absl::Span<const ClientStack> stacks, absl::Span<const int> group_of, int groups) {
  std::vector<double> load(groups, 0);
  double total = 0;
  for (size_t i = 0; i < stacks.size(); ++i) {
    const double cost = static_cast<double>(stacks[i].steps) * stacks[i].tasks.size();
    load[group_of[i]] += cost;
    total += cost;
  }
  return total > 0 ? *std::max_element(load.begin(), load.end()) * groups / total : 1.0;
}

}  // namespace shoal
