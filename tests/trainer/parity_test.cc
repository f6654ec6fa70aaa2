// Two recorded runs and what is said of them: planted differences are found where they are.
#include "trainer/parity.h"

#include <limits>

#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/memory_file_system.h"
#include "core/status.h"
#include "parallel/comm/local_communicator.h"
#include "trainer/parity_record.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

using Tensors = std::map<std::string, Tensor>;

// Whole tensors as they lie in memory, of a model of weights "first" and "last".
Tensors SomeTensors() {
  Tensors tensors;
  for (const char* kind : {"gradient", "weights", "adam_m"}) {
    tensors[absl::StrCat(kind, "/first")] = (at::arange(12, at::kDouble) - 5).view({4, 3});
    tensors[absl::StrCat(kind, "/last")] = at::arange(6, at::kDouble);
  }
  return tensors;
}

class ParityTest : public ::testing::Test {
 protected:
  void Write(const std::string& folder, int64_t step, const Tensors& tensors, double loss = 2.5,
             double grad_norm = 1.5) {
    StepRecord record{.step = step, .loss = loss, .grad_norm = grad_norm};
    record.weights = {{"first", transposed_}, {"last", false}};
    std::vector<StatePiece> pieces;
    for (const auto& [name, tensor] : tensors)
      pieces.push_back({.name = name, .shape = tensor.sizes().vec(), .data = tensor.contiguous()});
    const auto alone = MakeSingleRankCommunicator();
    const absl::Status saved = SaveCheckpoint(files_, *alone, folder, ToTrainerState(record),
                                              pieces, {.save_total_limit = 100});
    ASSERT_TRUE(saved.ok()) << saved;
  }

  StepComparison Compare(int64_t step = 1) {
    auto comparison = CompareStep(files_, "/a", "/b", step);
    EXPECT_TRUE(comparison.ok()) << comparison.status();
    return comparison.value_or(StepComparison());
  }

  // Of one step with these tensors.
  StepComparison Compare(const Tensors& a, const Tensors& b) {
    Write("/a", 1, a);
    Write("/b", 1, b);
    return Compare();
  }

  static const Difference& Find(const StepComparison& step, const std::string& kind,
                                const std::string& name) {
    for (const Difference& difference : step.differences) {
      if (difference.kind == kind && difference.name == name) return difference;
    }
    ADD_FAILURE() << "no " << kind << " of " << name;
    static const Difference none;
    return none;
  }

  MemoryFileSystem files_;
  bool transposed_ = false;
};

TEST_F(ParityTest, EqualRunsAreEqualToTheLastBit) {
  for (const int64_t step : {1, 2}) {
    Write("/a", step, SomeTensors());
    Write("/b", step, SomeTensors());
  }
  EXPECT_EQ(RecordedSteps(files_, "/a").value(), (std::vector<int64_t>{1, 2}));
  const Verdict verdict = Judge({Compare(1), Compare(2)}, 0);
  EXPECT_TRUE(verdict.within);
  EXPECT_EQ(verdict.text, "equal to the last bit over 2 steps");
}

TEST_F(ParityTest, PlantedDifferenceIsNamedWithStepAndElement) {
  Write("/a", 1, SomeTensors());
  Write("/b", 1, SomeTensors());
  Tensors other = SomeTensors();
  other["gradient/first"][2][1] += 0.6;  // 2, the largest is 6
  other["weights/last"][3] += 1e-6;
  Write("/a", 2, SomeTensors());
  Write("/b", 2, other, /*loss=*/2.5000025);
  const StepComparison step = Compare(2);
  const Difference& found = Find(step, "gradient", "first");
  EXPECT_EQ(found.element, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(found.a, 2);
  EXPECT_EQ(found.b, 2.6);
  EXPECT_NEAR(found.relative, 0.1, 1e-12);
  EXPECT_TRUE(Find(step, "gradient", "last").same_bits);
  EXPECT_TRUE(Find(step, "adam_m", "first").same_bits);

  const std::vector<StepComparison> steps = {Compare(1), step};
  const Verdict verdict = Judge(steps, 1e-3);
  EXPECT_FALSE(verdict.within);
  EXPECT_THAT(verdict.text,
              StartsWith("step 2: gradient of first differs first: 1.0e-01 relative at element "
                         "[2, 1] (A 2, B 2.6); loss of the step: 1.0e-06 relative"));
  EXPECT_THAT(StepTable(step), HasSubstr("1.0e-01     first [2, 1]\n"));

  const Verdict loose = Judge(steps, 0.2);
  EXPECT_TRUE(loose.within);
  EXPECT_THAT(loose.text, StartsWith("equal within 0.2 over 2 steps: largest difference 1.0e-01 "));
}

TEST_F(ParityTest, TheFirstInTheOrderOfComputationIsNamed) {
  Tensors other = SomeTensors();
  for (auto& [name, tensor] : other) tensor = tensor * 1.5;
  other["gradient/last"] = SomeTensors()["gradient/last"] * 1.01;
  EXPECT_THAT(Judge({Compare(SomeTensors(), other)}, 1e-3).text,
              StartsWith("step 1: gradient of last differs first: 9.9e-03 relative"));
  EXPECT_THAT(Judge({Compare(SomeTensors(), other)}, 2e-2).text,
              StartsWith("step 1: gradient of first differs first: "));
}

TEST_F(ParityTest, IndicesAreThoseOfFiles) {
  transposed_ = true;
  Tensors other = SomeTensors();
  other["weights/first"][3][0] = -1;
  EXPECT_EQ(Find(Compare(SomeTensors(), other), "weights", "first").element,
            (std::vector<int64_t>{0, 3}));
}

TEST_F(ParityTest, WhatIsNotFiniteInOneRunIsInfinitelyFar) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  Tensors a = SomeTensors(), b = SomeTensors();
  b["weights/last"][4] = kNan;
  a["adam_m/first"][1][1] = b["adam_m/first"][1][1] = kNan;
  const StepComparison step = Compare(a, b);
  const Difference& found = Find(step, "weights", "last");
  EXPECT_EQ(found.element, (std::vector<int64_t>{4}));
  EXPECT_EQ(found.relative, std::numeric_limits<double>::infinity());
  EXPECT_TRUE(Find(step, "adam_m", "first").same_bits);
  EXPECT_THAT(Judge({step}, 1e9).text, HasSubstr("weights of last differs first: inf relative"));

  Write("/a", 1, a, /*loss=*/kNan);
  EXPECT_FALSE(Judge({Compare()}, 1e9).within);
}

TEST_F(ParityTest, MissingTensorsAndOtherShapesAreDifferences) {
  Tensors missing = SomeTensors(), reshaped = SomeTensors();
  missing.erase("adam_m/last");
  reshaped["weights/first"] = reshaped["weights/first"].view({3, 4});
  EXPECT_EQ(Judge({Compare(SomeTensors(), missing)}, 1).text,
            "step 1: adam_m of last differs first: only in A; loss of the step: equal (2.5); "
            "beyond the tolerance: 1 of 6 tensors");
  EXPECT_THAT(Judge({Compare(SomeTensors(), reshaped)}, 1).text,
              HasSubstr("weights of first differs first: shape (4, 3) in A, (3, 4) in B"));
  EXPECT_THAT(StepTable(Compare()), HasSubstr("inf         first shape (4, 3) in A"));
}

TEST_F(ParityTest, DtypesAreComparedAsNumbers) {
  Tensors other = SomeTensors();
  for (auto& [name, tensor] : other) tensor = tensor.to(at::kFloat);
  EXPECT_TRUE(Judge({Compare(SomeTensors(), other)}, 0).within);
  other["weights/first"] = SomeTensors()["weights/first"].to(at::kBFloat16) / 3;
  const StepComparison step = Compare(Tensors({{"weights/x", SomeTensors()["weights/first"] / 3}}),
                                      Tensors({{"weights/x", other["weights/first"]}}));
  EXPECT_GT(Find(step, "weights", "x").relative, 1e-4);
  EXPECT_TRUE(Judge({step}, 1e-2).within);
}

TEST_F(ParityTest, ToleranceZeroSeesTheSignOfZero) {
  Tensors other = SomeTensors();
  other["gradient/last"][0] = -0.0;
  const StepComparison step = Compare(SomeTensors(), other);
  EXPECT_FALSE(Judge({step}, 0).within);
  EXPECT_THAT(Judge({step}, 0).text, HasSubstr("at element [0] (A 0, B -0)"));
  EXPECT_TRUE(Judge({step}, 1e-300).within);
}

TEST_F(ParityTest, RoundingOfWhatShouldBeZeroIsNoDifference) {
  Tensors a = SomeTensors(), b = SomeTensors();
  a["gradient/last"] = at::ones({6}, at::kDouble) * 1e-17;
  b["gradient/last"] = at::ones({6}, at::kDouble) * -1e-17;
  EXPECT_TRUE(Judge({Compare(a, b)}, 1e-10).within);
}

TEST_F(ParityTest, LargeTensorsAreReadInParts) {
  constexpr int64_t kNumel = (int64_t{1} << 21) + 5;
  const Tensor a = at::zeros({kNumel}, at::kFloat);
  Tensor b = a.clone();
  b[kNumel - 2] = 1;
  const StepComparison step = Compare({{"weights/first", a}}, {{"weights/first", b}});
  EXPECT_EQ(Find(step, "weights", "first").element, (std::vector<int64_t>{kNumel - 2}));
  EXPECT_TRUE(absl::IsCancelled(CompareStep(files_, "/a", "/b", 1, [] { return true; }).status()));
}

TEST(ParityToleranceTest, FollowsTheCoarserType) {
  Recipe wide, half;
  wide.mutable_model()->set_dtype(float64);
  half.mutable_model()->set_dtype(bfloat16);
  EXPECT_EQ(ParityTolerance(wide, wide), 1e-10);
  EXPECT_EQ(ParityTolerance(wide, Recipe()), 2e-4);
  EXPECT_EQ(ParityTolerance(half, Recipe()), 5e-2);
}

}  // namespace
}  // namespace shoal
