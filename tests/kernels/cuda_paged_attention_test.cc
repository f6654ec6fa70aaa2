// Paged attention of kernels/cuda against the plain operators in float64.
#include <gtest/gtest.h>

#include "kernels/paged_attention_device.h"
#include "tests/kernels/device_under_test.h"
#include "tests/kernels/paged_sequences.h"

namespace shoal {
namespace {

using CudaPagedAttentionTest = DeviceTest;

// A prompt that CausalAttention computes, short ones, tokens, longer pieces, other prompts between.
const std::vector<std::vector<int64_t>> kGrowth = {
    {20, 3, 1, 0}, {1, 1, 1, 0}, {4, 0, 18, 17}, {1, 1, 1, 1}};

TEST_F(CudaPagedAttentionTest, EqualsReference) {
  for (at::ScalarType dtype : kDeviceDtypes) {
    for (const PagedHeads& shape :
         {PagedHeads{4, 2, 64}, {3, 3, 17}, {6, 1, 80}, {2, 2, 128}, {5, 1, 256}, {2, 1, 100}}) {
      SCOPED_TRACE(testing::Message() << dtype << ", head size " << shape.head_dim);
      ASSERT_TRUE(HasPagedKernels(
          at::empty({1, 1, shape.head_dim}, at::TensorOptions(dtype).device(*DeviceUnderTest()))));
      ExpectPagedEqualsReference(shape, dtype, *DeviceUnderTest(), kGrowth);
    }
  }
}

// Of several pieces, one of them the last row's alone; beside a row of one piece.
TEST_F(CudaPagedAttentionTest, MergesThePiecesOfLongRows) {
  for (at::ScalarType dtype : kDeviceDtypes) {
    ExpectPagedEqualsReference({4, 2, 32}, dtype, *DeviceUnderTest(),
                               {{kDevicePagedPiece - 1, 5}, {1, 1}, {1, 1}, {30, 0}, {1, 1}});
  }
}

// To the last bit.
TEST_F(CudaPagedAttentionTest, ARowGetsTheSameInAnyCompany) {
  const auto attend = [&](const Tensor& rows, const std::vector<int64_t>& lengths) {
    PagedBlocks blocks({.key_heads = 2, .head_dim = 16, .blocks = 256}, at::kFloat,
                       *DeviceUnderTest());
    std::vector<std::vector<const void*>> tables;
    std::vector<PagedSegment> prompts, tokens;
    int64_t row = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      tables.push_back(blocks.Take(lengths[i] + 1));
      prompts.push_back({row, lengths[i], 0, tables[i].data()});
      tokens.push_back({static_cast<int64_t>(i), 1, lengths[i], tables[i].data()});
      row += lengths[i];
    }
    const auto run = [&](const Tensor& x, std::span<const PagedSegment> segments) {
      const Tensor there = Placed(x);
      return PagedAttention(there.narrow(1, 0, 4), there.narrow(1, 4, 2), there.narrow(1, 6, 2),
                            segments, blocks.layout(), 0,
                            PagedTable(segments, blocks.layout().block_places, there.options()));
    };
    run(rows.narrow(0, 0, row), prompts);
    return run(rows.narrow(0, row, tokens.size()), tokens).cpu();
  };
  const Tensor long_rows = at::randn({701, 8, 16}), short_rows = at::randn({13, 8, 16});
  const auto part = [](const Tensor& x, int64_t first, int64_t count) {
    return x.narrow(0, first, count);
  };
  const Tensor together = attend(at::cat({part(long_rows, 0, 700), part(short_rows, 0, 12),
                                          part(long_rows, 700, 1), part(short_rows, 12, 1)}),
                                 {700, 12});
  EXPECT_TRUE(together[0].equal(attend(long_rows, {700})[0]));
  EXPECT_TRUE(together[1].equal(attend(short_rows, {12})[0]));
}

TEST_F(CudaPagedAttentionTest, LargerHeadsTakeThePlainPath) {
  EXPECT_FALSE(HasPagedKernels(Placed(at::empty({1, 1, 264}))));
}

}  // namespace
}  // namespace shoal
