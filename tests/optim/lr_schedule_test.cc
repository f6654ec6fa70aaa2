// Expected values: transformers 5.23
// get_{linear,cosine,cosine_with_min_lr,wsd}_schedule_with_warmup, optimizer with lr 1, read off by
// tests/fixtures/make_schedule_fixtures.py.
#include "optim/lr_schedule.h"

#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace shoal {
namespace {

LrSchedule::Type TypeOf(const std::string& name) {
  if (name == "constant") return LrSchedule::Type::kConstant;
  if (name == "linear") return LrSchedule::Type::kLinear;
  return name == "cosine" ? LrSchedule::Type::kCosine : LrSchedule::Type::kWsd;
}

TEST(LrSchedule, EqualsTransformers) {
  std::ifstream file("tests/fixtures/schedules.json");
  const nlohmann::json cases = nlohmann::json::parse(file);
  ASSERT_GE(cases.size(), 6u);
  for (const auto& c : cases) {
    const LrSchedule schedule{.type = TypeOf(c["type"]),
                              .peak = 1,
                              .min_ratio = c["min_ratio"],
                              .total_steps = c["total"],
                              .warmup_steps = c["warmup"],
                              .decay_steps = c["decay"]};
    for (size_t step = 0; step < c["values"].size(); ++step) {
      EXPECT_NEAR(schedule.At(static_cast<int64_t>(step)), c["values"][step].get<double>(), 1e-12)
          << c.dump().substr(0, 100) << " at " << step;
    }
  }
}

TEST(LrSchedule, SharesBecomeSteps) {
  EXPECT_EQ(StepsFromShare(0.1, 100), 10);
  EXPECT_EQ(StepsFromShare(0.01, 30), 1);
  EXPECT_EQ(StepsFromShare(7, 30), 7);
  EXPECT_EQ(StepsFromShare(0, 30), 0);
}

}  // namespace
}  // namespace shoal
