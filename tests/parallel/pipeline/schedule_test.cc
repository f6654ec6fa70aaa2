#include "parallel/pipeline/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "parallel/pipeline/simulate.h"

namespace shoal {
namespace {

using enum Action::Kind;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Le;

constexpr ScheduleKind kAllKinds[] = {ScheduleKind::kGpipe, ScheduleKind::k1F1B,
                                      ScheduleKind::kInterleaved1F1B, ScheduleKind::kZbH1,
                                      ScheduleKind::kZbV};

Schedule Make(ScheduleKind kind, int ranks, int micro_batches, int chunks = 1) {
  absl::StatusOr<Schedule> schedule = MakeSchedule(kind, ranks, micro_batches, chunks);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return *std::move(schedule);
}

// Forward 1, backward 2, no transfers.
Simulation RunUnitCosts(const Schedule& schedule) {
  absl::StatusOr<Simulation> simulation = Simulate(schedule, {});
  EXPECT_TRUE(simulation.ok()) << NameOf(schedule.kind) << ": " << simulation.status();
  return *std::move(simulation);
}

int Peak(const Simulation& simulation) {
  return *std::max_element(simulation.peak_activations.begin(), simulation.peak_activations.end());
}

std::string SizeOf(const Schedule& s) {
  return std::string(NameOf(s.kind)) + " ranks " + std::to_string(s.ranks) + " micro-batches " +
         std::to_string(s.micro_batches) + " chunks " + std::to_string(s.chunks);
}

// Calls test(schedule) for every kind, 1 to 8 ranks and up to 3 chunks.
template <typename Test>
void ForAllSchedules(const Test& test) {
  for (int p = 1; p <= 8; ++p) {
    for (int m : std::set<int>{1, 3, p, p + 1, 2 * p - 1, 2 * p, 3 * p + 2}) {
      for (ScheduleKind kind : kAllKinds) {
        for (int chunks = 1; chunks <= 3; ++chunks) {
          if (!CheckScheduleSize(kind, p, m, chunks).ok()) continue;
          const Schedule schedule = Make(kind, p, m, chunks);
          SCOPED_TRACE(SizeOf(schedule));
          test(schedule);
        }
      }
    }
  }
}

TEST(Schedule, EverySizeRunsWithoutDeadlockAndMakesEveryActionOnce) {
  int schedules = 0;
  ForAllSchedules([&](const Schedule& schedule) {
    ++schedules;
    const absl::StatusOr<Simulation> simulation = Simulate(schedule, {.transfer = 0.25});
    EXPECT_TRUE(simulation.ok()) << simulation.status();
  });
  EXPECT_GT(schedules, 8 * 5 * 7);
}

TEST(Schedule, ActionsOfAChunkComeInTheOrderOfMicroBatches) {
  ForAllSchedules([](const Schedule& schedule) {
    for (const auto& list : schedule.actions) {
      for (int chunk = 0; chunk < schedule.chunks; ++chunk) {
        for (Action::Kind kind : {kForward, kBackward, kBackwardInput, kBackwardWeight}) {
          int next = 0;
          for (const Action& action : list) {
            if (action.chunk != chunk || action.kind != kind) continue;
            EXPECT_EQ(action.micro_batch, next++) << Describe(action);
          }
        }
      }
    }
  });
}

TEST(Schedule, MessagesOfOneKindAreSentInTheOrderInWhichTheyAreWanted) {
  using Channel = std::tuple<int, int, int>;  // From rank, to rank, step in stages: 1 or -1
  using Message = std::pair<int, int>;        // To stage, micro-batch
  ForAllSchedules([](const Schedule& schedule) {
    std::map<Channel, std::vector<Message>> sent, wanted;
    for (int rank = 0; rank < schedule.ranks; ++rank) {
      for (const Action& action : schedule.actions[rank]) {
        if (action.kind == kBackwardWeight) continue;
        const int stage = schedule.StageOf(rank, action.chunk);
        const int step = action.kind == kForward ? 1 : -1;
        const auto other_rank = [&](int other) {
          return other < 0 || other >= schedule.stages() ? rank : schedule.PlaceOf(other).rank;
        };
        if (const int to = other_rank(stage + step); to != rank) {
          sent[{rank, to, step}].emplace_back(stage + step, action.micro_batch);
        }
        if (const int from = other_rank(stage - step); from != rank) {
          wanted[{from, rank, step}].emplace_back(stage, action.micro_batch);
        }
      }
    }
    EXPECT_EQ(sent, wanted);
  });
}

TEST(Schedule, PlacesStagesAndFindsThemAgain) {
  ForAllSchedules([](const Schedule& schedule) {
    for (int stage = 0; stage < schedule.stages(); ++stage) {
      const Schedule::Place place = schedule.PlaceOf(stage);
      EXPECT_EQ(schedule.StageOf(place.rank, place.chunk), stage);
    }
  });
  const Schedule interleaved = Make(ScheduleKind::kInterleaved1F1B, 4, 4, 3);
  EXPECT_EQ(interleaved.StageOf(1, 2), 9);
  const Schedule v = Make(ScheduleKind::kZbV, 4, 4, 2);
  EXPECT_EQ(v.StageOf(3, 0), 3);
  EXPECT_EQ(v.StageOf(3, 1), 4);
  EXPECT_EQ(v.StageOf(0, 1), 7);
}

TEST(Schedule, OneFOneBList) {
  const Schedule schedule = Make(ScheduleKind::k1F1B, 2, 3);
  EXPECT_THAT(schedule.actions[0], ElementsAre(Action{kForward, 0, 0}, Action{kForward, 0, 1},
                                               Action{kBackward, 0, 0}, Action{kForward, 0, 2},
                                               Action{kBackward, 0, 1}, Action{kBackward, 0, 2}));
}

TEST(Schedule, GpipeAnd1F1BHaveTheKnownBubbleAndMemory) {
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 3 * p + 1; ++m) {
      const double bubble = (p - 1.0) / (m + p - 1);
      const Simulation gpipe = RunUnitCosts(Make(ScheduleKind::kGpipe, p, m));
      const Simulation one = RunUnitCosts(Make(ScheduleKind::k1F1B, p, m));
      EXPECT_NEAR(gpipe.bubble, bubble, 1e-12) << p << " " << m;
      EXPECT_NEAR(one.bubble, bubble, 1e-12) << p << " " << m;
      EXPECT_THAT(gpipe.peak_activations, Each(m));
      for (int r = 0; r < p; ++r) EXPECT_EQ(one.peak_activations[r], std::min(m, p - r));
    }
  }
}

TEST(Schedule, InterleavedHasTheKnownBubbleAtAnyCountFromRanksUp) {
  for (int p = 1; p <= 8; ++p) {
    for (int chunks = 1; chunks <= 3; ++chunks) {
      for (int m = p; m <= 4 * p; ++m) {
        const Simulation simulation =
            RunUnitCosts(Make(ScheduleKind::kInterleaved1F1B, p, m, chunks));
        EXPECT_NEAR(simulation.bubble, (p - 1.0) / (chunks * m + p - 1), 1e-12)
            << p << " ranks, " << chunks << " chunks, " << m << " micro-batches";
        if (m % p == 0 && chunks > 1) {
          EXPECT_EQ(Peak(simulation), std::min(chunks * m, (chunks + 1) * p - 1));
        }
      }
    }
  }
}

TEST(Schedule, InterleavedBelowRanksIsNoSlowerThan1F1B) {
  for (int p = 2; p <= 8; ++p) {
    for (int m = 1; m < p; ++m) {
      const Simulation one = RunUnitCosts(Make(ScheduleKind::k1F1B, p, m));
      const Simulation two = RunUnitCosts(Make(ScheduleKind::kInterleaved1F1B, p, m, 2));
      EXPECT_LE(two.total / 2, one.total + 1e-12) << p << " " << m;
    }
  }
}

TEST(Schedule, ZbH1HasAThirdOfTheBubbleIn1F1BsMemory) {
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 3 * p + 1; ++m) {
      const Simulation zb_h1 = RunUnitCosts(Make(ScheduleKind::kZbH1, p, m));
      const Simulation one = RunUnitCosts(Make(ScheduleKind::k1F1B, p, m));
      EXPECT_LE(Peak(zb_h1), Peak(one)) << p << " " << m;
      for (int r = 0; r < p; ++r) {
        EXPECT_LE(zb_h1.peak_activations_to_input_half[r], one.peak_activations[r]);
      }
      if (p == 1) continue;
      EXPECT_LT(zb_h1.bubble, one.bubble) << p << " " << m;
      // Idle time a rank is (p - 1)(F + I - W), 1F1B's (p - 1)(F + I + W).
      if (m >= p) {
        EXPECT_NEAR(zb_h1.total - 3 * m, (one.total - 3 * m) / 3, 1e-12) << p << " " << m;
      }
    }
  }
}

TEST(Schedule, ZbVHasASixthOfTheBubbleIn1F1BsMemory) {
  const ActionCosts half = {.forward = 0.5, .backward_input = 0.5, .backward_weight = 0.5};
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 3 * p + 1; ++m) {
      const Schedule schedule = Make(ScheduleKind::kZbV, p, m, 2);
      const Simulation zbv = *Simulate(schedule, half);
      const Simulation zb_h1 = RunUnitCosts(Make(ScheduleKind::kZbH1, p, m));
      EXPECT_THAT(zbv.peak_activations, Each(Le(2 * std::min(p, m)))) << p << " " << m;
      EXPECT_LE(zbv.total, zb_h1.total + 1e-12) << p << " " << m;
      if (m >= 2 * p - 1) {
        EXPECT_NEAR(zbv.total, 3 * m + 0.5 * (p - 1), 1e-12) << p << " " << m;
      }
      if (m >= 2 * p && p > 1) {
        EXPECT_LT(zbv.bubble, zb_h1.bubble) << p << " " << m;
      }
    }
  }
}

TEST(Schedule, NamesKindsAndActions) {
  std::vector<std::string> names;
  for (ScheduleKind kind : kAllKinds) names.emplace_back(NameOf(kind));
  EXPECT_THAT(names, ElementsAre("gpipe", "1f1b", "interleaved_1f1b", "zb_h1", "zbv"));
  EXPECT_EQ(Describe({kBackwardInput, 1, 3}), "input half of chunk 1, micro-batch 3");
}

TEST(Schedule, RefusesSizesThatNoListHas) {
  const auto refusal = [](ScheduleKind kind, int ranks, int micro_batches, int chunks) {
    const absl::Status status = MakeSchedule(kind, ranks, micro_batches, chunks).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(ScheduleKind::k1F1B, 0, 4, 1),
            "a pipeline schedule needs at least 1 of ranks, got 0");
  EXPECT_THAT(refusal(ScheduleKind::k1F1B, 2, 0, 1), HasSubstr("micro-batches, got 0"));
  EXPECT_THAT(refusal(ScheduleKind::kInterleaved1F1B, 2, 4, 0), HasSubstr("chunks, got 0"));
  EXPECT_EQ(refusal(ScheduleKind::kZbV, 2, 4, 3),
            "schedule zbv lays 2 chunks a rank in a V, got 3: set 2");
  for (ScheduleKind kind : {ScheduleKind::kGpipe, ScheduleKind::k1F1B, ScheduleKind::kZbH1}) {
    EXPECT_THAT(refusal(kind, 2, 4, 2), HasSubstr("has 1 chunk a rank, got 2"));
  }
}

}  // namespace
}  // namespace shoal
