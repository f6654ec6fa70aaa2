#include "core/scalar_sum.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(ScalarSumTest, AddsInFloat64AndInOrder) {
  ScalarSum sum;
  double want = 0;
  for (int i = 0; i < 100; ++i) {
    const float number = 0.1f * static_cast<float>(i * i);
    sum.Add(at::scalar_tensor(number, at::kFloat));
    sum.Add(1e-9);
    want += number;
    want += 1e-9;
  }
  EXPECT_EQ(sum.Read(), want);
  EXPECT_EQ(sum.Read(), want);
}

TEST(ScalarSumTest, ReadsManyTogether) {
  std::vector<ScalarSum> sums(3);
  sums[0].Add(at::scalar_tensor(2, at::kFloat).set_requires_grad(true));
  sums[2].Add(at::scalar_tensor(0.5, at::kDouble));
  EXPECT_EQ(ReadSums(sums), (std::vector<double>{2, 0, 0.5}));
  EXPECT_EQ(ReadNumbers({at::scalar_tensor(3, at::kFloat), at::scalar_tensor(4, at::kFloat)}),
            (std::vector<double>{3, 4}));
  EXPECT_TRUE(ReadNumbers({}).empty());
}

}  // namespace
}  // namespace shoal
