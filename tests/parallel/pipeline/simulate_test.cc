#include "parallel/pipeline/simulate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace shoal {
namespace {

using enum Action::Kind;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Schedule ByHand(std::vector<std::vector<Action>> actions, int micro_batches) {
  return {.kind = ScheduleKind::k1F1B,
          .ranks = static_cast<int>(actions.size()),
          .micro_batches = micro_batches,
          .chunks = 1,
          .actions = std::move(actions)};
}

std::string Refusal(const Schedule& schedule, const ActionCosts& costs = {}) {
  const absl::Status status = Simulate(schedule, costs).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(Simulate, TimesActionsAndTransfers) {
  const Schedule schedule =
      ByHand({{{kForward, 0, 0}, {kBackward, 0, 0}},
              {{kForward, 0, 0}, {kBackwardInput, 0, 0}, {kBackwardWeight, 0, 0}}},
             1);
  const Simulation simulation = *Simulate(
      schedule, {.forward = 2, .backward_input = 3, .backward_weight = 4, .transfer = 0.5});
  EXPECT_EQ(simulation.spans[1][0].start, 2.5);
  EXPECT_EQ(simulation.spans[1][1].end, 7.5);
  EXPECT_EQ(simulation.spans[1][2].end, 11.5);
  EXPECT_EQ(simulation.spans[0][1].start, 8);
  EXPECT_EQ(simulation.spans[0][1].end, 15);
  EXPECT_EQ(simulation.total, 15);
  EXPECT_DOUBLE_EQ(simulation.bubble, 12.0 / 30);
  EXPECT_THAT(simulation.messages, ElementsAre(1, 1));
}

TEST(Simulate, CountsActivationsToTheEndOfEitherHalf) {
  const Schedule schedule = ByHand({{{kForward, 0, 0},
                                     {kBackwardInput, 0, 0},
                                     {kForward, 0, 1},
                                     {kBackwardInput, 0, 1},
                                     {kBackwardWeight, 0, 0},
                                     {kBackwardWeight, 0, 1}}},
                                   2);
  const Simulation simulation = *Simulate(schedule, {});
  EXPECT_THAT(simulation.peak_activations, ElementsAre(2));
  EXPECT_THAT(simulation.peak_activations_to_input_half, ElementsAre(1));
}

TEST(Simulate, CountsMessagesBetweenRanksOnly) {
  // Stage 1 to 2 of a V on 2 ranks stays on rank 1.
  const Simulation v = *Simulate(*MakeSchedule(ScheduleKind::kZbV, 2, 5, 2), {});
  EXPECT_THAT(v.messages, ElementsAre(10, 10));
  const Simulation loop = *Simulate(*MakeSchedule(ScheduleKind::kInterleaved1F1B, 2, 5, 2), {});
  EXPECT_THAT(loop.messages, ElementsAre(15, 15));
  const Simulation alone = *Simulate(*MakeSchedule(ScheduleKind::kInterleaved1F1B, 1, 5, 3), {});
  EXPECT_THAT(alone.messages, ElementsAre(0));
}

TEST(Simulate, FreeActionsHaveNoBubble) {
  const Schedule schedule = *MakeSchedule(ScheduleKind::k1F1B, 2, 2, 1);
  const Simulation simulation =
      *Simulate(schedule, {.forward = 0, .backward_input = 0, .backward_weight = 0});
  EXPECT_EQ(simulation.total, 0);
  EXPECT_EQ(simulation.bubble, 0);
}

TEST(Simulate, NamesEveryRankOfADeadlock) {
  const Schedule schedule =
      ByHand({{{kForward, 0, 0}, {kBackward, 0, 0}, {kForward, 0, 1}, {kBackward, 0, 1}},
              {{kForward, 0, 0}, {kForward, 0, 1}, {kBackward, 0, 0}, {kBackward, 0, 1}}},
             2);
  EXPECT_EQ(Refusal(schedule),
            "pipeline schedule has a deadlock: rank 0 at action 1, backward of chunk 0, "
            "micro-batch 0, waits for the backward of stage 1, on rank 1; rank 1 at action 1, "
            "forward of chunk 0, micro-batch 1, waits for the forward of stage 0, on rank 0");
}

TEST(Simulate, NamesAnActionBeforeItsOwnInput) {
  EXPECT_EQ(Refusal(ByHand({{{kBackward, 0, 0}, {kForward, 0, 0}}}, 1)),
            "pipeline schedule has a deadlock: rank 0 at action 0, backward of chunk 0, "
            "micro-batch 0, waits for the forward of stage 0, which comes later in its own list");
  EXPECT_THAT(
      Refusal(ByHand({{{kForward, 0, 0}, {kBackwardWeight, 0, 0}, {kBackwardInput, 0, 0}}}, 1)),
      HasSubstr("waits for the backward of stage 0, which comes later in its own list"));
}

TEST(Simulate, RefusesMissingDoubleAndForeignActions) {
  const auto refusal = [](std::vector<Action> list) { return Refusal(ByHand({list}, 1)); };
  EXPECT_EQ(refusal({{kBackward, 0, 0}}),
            "schedule of rank 0: forward of chunk 0, micro-batch 0 is missing");
  EXPECT_EQ(refusal({{kForward, 0, 0}}),
            "schedule of rank 0: backward of chunk 0, micro-batch 0 is missing");
  EXPECT_EQ(refusal({{kForward, 0, 0}, {kBackwardInput, 0, 0}}),
            "schedule of rank 0: weight half of chunk 0, micro-batch 0 is missing");
  EXPECT_EQ(refusal({{kForward, 0, 0}, {kBackwardWeight, 0, 0}}),
            "schedule of rank 0: input half of chunk 0, micro-batch 0 is missing");
  EXPECT_EQ(refusal({{kForward, 0, 0}, {kForward, 0, 0}}),
            "schedule of rank 0: forward of chunk 0, micro-batch 0 is there twice");
  EXPECT_EQ(refusal({{kForward, 0, 0}, {kBackward, 0, 0}, {kBackwardWeight, 0, 0}}),
            "schedule of rank 0: weight half of chunk 0, micro-batch 0 is there twice: as a whole "
            "backward and as a half");
  EXPECT_EQ(refusal({{kForward, 1, 0}}),
            "schedule of rank 0: forward of chunk 1, micro-batch 0 is out of range: there are 1 "
            "chunks and 1 micro-batches");
  EXPECT_THAT(refusal({{kForward, 0, -1}}), HasSubstr("micro-batch -1 is out of range"));
  EXPECT_THAT(refusal({}), HasSubstr("is missing"));
}

TEST(Simulate, RefusesWrongSizesAndCosts) {
  Schedule schedule = *MakeSchedule(ScheduleKind::k1F1B, 2, 2, 1);
  EXPECT_THAT(Refusal(schedule, {.forward = -1}), HasSubstr("not below 0, got -1"));
  EXPECT_THAT(Refusal(schedule, {.transfer = std::nan("")}), HasSubstr("must be finite"));
  schedule.actions.pop_back();
  EXPECT_EQ(Refusal(schedule), "schedule of 2 ranks has 1 action lists");
  schedule.chunks = 2;
  EXPECT_THAT(Refusal(schedule), HasSubstr("has 1 chunk a rank, got 2"));
}

}  // namespace
}  // namespace shoal
