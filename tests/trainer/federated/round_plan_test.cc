#include "trainer/federated/round_plan.h"

#include <algorithm>
#include <set>

#include <gtest/gtest.h>

namespace shoal {
namespace {

Population Of(std::vector<int64_t> steps) { return {.seed = 3, .steps = std::move(steps)}; }

TEST(RoundPlan, ChoosesSoManyDistinctClients) {
  FederatedSection federated;
  federated.set_clients_per_round(4);
  const auto planner = MakeSynchronousPlanner(federated, Of(std::vector<int64_t>(10, 1)));
  std::set<int64_t> seen;
  std::set<std::vector<int64_t>> cohorts;
  for (int round = 0; round < 50; ++round) {
    const RoundPlan plan = planner->Plan(round);
    std::vector<int64_t> cohort;
    for (const ClientTask& task : plan.tasks) {
      cohort.push_back(task.client);
      EXPECT_EQ(task.version, round);
    }
    EXPECT_EQ(std::set<int64_t>(cohort.begin(), cohort.end()).size(), 4u);
    seen.insert(cohort.begin(), cohort.end());
    cohorts.insert(cohort);
    EXPECT_EQ(planner->OldestVersionNeeded(), round + 1);
  }
  EXPECT_EQ(seen.size(), 10u);
  EXPECT_GT(cohorts.size(), 30u);
}

TEST(RoundPlan, CoinsComeUpAsOftenAsTheyShould) {
  FederatedSection federated;
  federated.set_clients_per_round(20);
  federated.set_sampling(FederatedSection::poisson);
  federated.set_dropout(0.25);
  const auto planner = MakeSynchronousPlanner(federated, Of(std::vector<int64_t>(100, 1)));
  double chosen = 0, dropped = 0;
  for (int round = 0; round < 500; ++round) {
    for (const ClientTask& task : planner->Plan(round).tasks) {
      ++chosen;
      dropped += task.dropped;
    }
  }
  EXPECT_NEAR(chosen / 500, 20, 0.6);  // Standard deviation 4 / sqrt(500) = 0.18
  EXPECT_NEAR(dropped / chosen, 0.25, 0.02);
}

TEST(RoundPlan, LongestFirstBalances) {
  RoundPlan plan;
  for (int64_t client = 0; client < 7; ++client) plan.tasks.push_back({.client = client});
  plan.tasks[2].dropped = true;
  const Population population = Of({1, 9, 100, 5, 4, 3, 2});
  const std::vector<ClientStack> stacks = StackTasks(plan, population, 1);
  ASSERT_EQ(stacks.size(), 6u);
  EXPECT_EQ(stacks[0].tasks, std::vector<int>{1});
  const std::vector<int> groups = AssignStacks(stacks, 2, FederatedSection::longest_first);
  EXPECT_DOUBLE_EQ(Imbalance(stacks, groups, 2), 1.0);  // 9 + 2 + 1 and 5 + 4 + 3
  const std::vector<int> in_turn = AssignStacks(stacks, 2, FederatedSection::round_robin);
  EXPECT_DOUBLE_EQ(Imbalance(stacks, in_turn, 2), (9 + 4 + 2) / 12.0);
}

TEST(RoundPlan, StacksAreOfEquallyLongClientsAndNearlyEqualSize) {
  RoundPlan plan;
  for (int64_t client = 0; client < 9; ++client) plan.tasks.push_back({.client = client});
  const std::vector<ClientStack> stacks = StackTasks(plan, Of({5, 5, 5, 5, 5, 5, 5, 2, 2}), 4);
  ASSERT_EQ(stacks.size(), 3u);
  EXPECT_EQ(stacks[0].tasks, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(stacks[1].tasks, (std::vector<int>{3, 4, 5, 6}));
  EXPECT_EQ(stacks[2].tasks, (std::vector<int>{7, 8}));
}

TEST(VirtualClock, FastClientsReportMoreOftenAndLateOnesWeighLess) {
  FederatedSection federated;
  federated.mutable_asynchronous()->set_buffer_size(3);
  federated.mutable_asynchronous()->set_concurrency(6);
  federated.mutable_asynchronous()->set_latency_sigma(0);
  // Two slow clients among fast ones.
  const Population population = Of({1, 1, 1, 1, 1, 1, 20, 20});
  const auto clock = MakeVirtualClock(federated, population);
  std::vector<int> reports(8, 0);
  double latest = 0;
  for (int round = 0; round < 100; ++round) {
    const RoundPlan plan = clock->Plan(round);
    ASSERT_EQ(plan.tasks.size(), 3u);
    for (const ClientTask& task : plan.tasks) {
      ++reports[task.client];
      EXPECT_LE(task.version, round);
      const double staleness = static_cast<double>(round - task.version);
      EXPECT_DOUBLE_EQ(task.staleness_weight, 1 / std::sqrt(1 + staleness));
      latest = std::max(latest, staleness);
      EXPECT_LE(clock->OldestVersionNeeded(), round + 1);
    }
  }
  EXPECT_GT(latest, 10);
  EXPECT_GT(reports[0], 3 * reports[6]);
  EXPECT_GT(reports[6], 0);
}

TEST(VirtualClock, ClientsAfterASlowOneInNumberAreNotPreferred) {
  FederatedSection federated;
  federated.mutable_asynchronous()->set_buffer_size(1);
  federated.mutable_asynchronous()->set_concurrency(2);
  federated.mutable_asynchronous()->set_latency_sigma(0);
  const auto clock = MakeVirtualClock(federated, Of({1'000'000, 1, 1, 1}));  // Always at work
  std::vector<int> reports(4, 0);
  for (int round = 0; round < 3000; ++round) ++reports[clock->Plan(round).tasks[0].client];
  EXPECT_LE(reports[0], 1);
  // A third of 3000 each, standard deviation 26; were they next to ask, the first would have half.
  for (int client = 1; client < 4; ++client) EXPECT_NEAR(reports[client], 1000, 110) << client;
}

TEST(VirtualClock, IsAFunctionOfTheSeed) {
  FederatedSection federated;
  federated.mutable_asynchronous()->set_buffer_size(4);
  federated.mutable_asynchronous()->set_concurrency(8);
  const Population population = Of(std::vector<int64_t>(30, 2));
  const auto a = MakeVirtualClock(federated, population),
             b = MakeVirtualClock(federated, population);
  for (int round = 0; round < 20; ++round) {
    const RoundPlan first = a->Plan(round), second = b->Plan(round);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(first.tasks[i].client, second.tasks[i].client);
      EXPECT_EQ(first.tasks[i].visit, second.tasks[i].visit);
    }
  }
}

}  // namespace
}  // namespace shoal
