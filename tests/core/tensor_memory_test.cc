#include "core/tensor_memory.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

constexpr int64_t kBytes = int64_t{8} << 20;
constexpr int64_t kSlack = int64_t{16} << 10;  // What malloc gives beyond what it was asked for

at::Tensor Make() { return at::empty({kBytes}, at::kByte); }

TEST(TensorMemoryTest, CountsWhatIsAliveAndTheMostThatWas) {
  CountTensorMemory();
  const int64_t before = TensorBytes();
  ResetPeakTensorBytes();
  {
    const at::Tensor first = Make();
    {
      const at::Tensor second = Make();
      EXPECT_NEAR(TensorBytes() - before, 2 * kBytes, kSlack);
    }
    const at::Tensor view = first.view({-1, 2});
    EXPECT_NEAR(TensorBytes() - before, kBytes, kSlack);
  }
  EXPECT_EQ(TensorBytes(), before);
  EXPECT_NEAR(PeakTensorBytes() - before, 2 * kBytes, kSlack);
  ResetPeakTensorBytes();
  AddTensorBytes(kBytes);
  AddTensorBytes(-kBytes);
  EXPECT_EQ(PeakTensorBytes() - before, kBytes);
  EXPECT_EQ(TensorBytes(), before);
}

}  // namespace
}  // namespace shoal
