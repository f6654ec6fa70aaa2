#include "parallel/pipeline/picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

namespace shoal {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::string Draw(ScheduleKind kind, int ranks, int micro_batches, int chunks,
                 const ActionCosts& costs = {}, int width = 100) {
  const Schedule schedule = *MakeSchedule(kind, ranks, micro_batches, chunks);
  return DrawSchedule(schedule, *Simulate(schedule, costs), width);
}

TEST(Picture, Draws1F1B) {
  EXPECT_EQ(Draw(ScheduleKind::k1F1B, 4, 8, 1),
            R"(rank 0 |0 1 2 3 ............B0  4 B1  5 B2  6 B3  7 B4  ..B5  ..B6  ..B7  |
rank 1 |..0 1 2 ........B0  3 B1  4 B2  5 B3  6 B4  7 B5  ..B6  ..B7  ....|
rank 2 |....0 1 ....B0  2 B1  3 B2  4 B3  5 B4  6 B5  7 B6  ..B7  ........|
rank 3 |......0 B0  1 B1  2 B2  3 B3  4 B4  5 B5  6 B6  7 B7  ............|
0 forward of micro-batch 0, B0 backward, . idle; a column is 0.5
1f1b: time 33, bubble 27.3%, peak activations by rank 4 3 2 1
)");
}

TEST(Picture, TellsHalvesAndChunksApart) {
  EXPECT_EQ(Draw(ScheduleKind::kZbV, 2, 2, 2),
            R"(rank 0 |0a  1a  ....0b  I0b W0b 1b  I1b W1b I0a W0a ....I1a W1a |
rank 1 |....0a  0b  1a  1b  I0b W0b I0a W0a I1b W1b I1a W1a ....|
)"
            "0 forward of micro-batch 0, I0 input half, W0 weight half, a-b chunk, . idle; "
            "a column is 0.25\n"
            "zbv: time 14, bubble 14.3%, peak activations by rank 3 4\n");
}

TEST(Picture, GivesBothPeaksWhereTheyDiffer) {
  EXPECT_THAT(Draw(ScheduleKind::kZbH1, 3, 6, 1),
              HasSubstr("peak activations by rank 3 3 3 (to the input half: 3 2 1)\n"));
}

TEST(Picture, CutsToTheWidthAndSaysHowMuchIsLeftOut) {
  const std::string picture = Draw(ScheduleKind::k1F1B, 4, 8, 1, {}, 41);
  std::istringstream lines(picture);
  std::string line;
  for (int rank = 0; rank < 4; ++rank) {
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_THAT(line, SizeIs(41));
    EXPECT_EQ(line.back(), '>');
  }
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_EQ(line, "cut at time 16 of 33: 52% left out, it is 75 wide");
  EXPECT_EQ(Draw(ScheduleKind::k1F1B, 4, 8, 1, {}, 75).find("cut"), std::string::npos);
}

TEST(Picture, FitsLabelsOfAnyLengthAndCost) {
  const std::string many = Draw(ScheduleKind::k1F1B, 1, 101, 1, {.forward = 0.3}, 10000);
  for (int i = 0; i <= 100; ++i) EXPECT_THAT(many, HasSubstr("B" + std::to_string(i) + " "));
  EXPECT_THAT(Draw(ScheduleKind::k1F1B, 11, 1, 1), HasSubstr("rank  9 |"));
  EXPECT_THAT(Draw(ScheduleKind::k1F1B, 2, 2, 1, {.forward = 1e-300}, -5), HasSubstr("rank 1 |"));
  EXPECT_THAT(Draw(ScheduleKind::k1F1B, 2, 2, 1, {0, 0, 0, 0}), HasSubstr("rank 1 ||\n"));
}

}  // namespace
}  // namespace shoal
