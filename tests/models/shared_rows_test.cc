#include "models/shared_rows.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

Batch BatchOf(const std::vector<std::vector<int64_t>>& rows, int64_t T) {
  const auto B = static_cast<int64_t>(rows.size());
  Batch batch{.tokens_BT = at::zeros({B, T}, at::kLong),
              .positions_BT = at::arange(T, at::kLong).repeat({B, 1}),
              .lengths_B = at::empty({B}, at::kLong)};
  for (int64_t b = 0; b < B; ++b) {
    batch.lengths_B[b] = static_cast<int64_t>(rows[b].size());
    for (size_t t = 0; t < rows[b].size(); ++t)
      batch.tokens_BT[b][static_cast<int64_t>(t)] = rows[b][t];
  }
  return batch;
}

TEST(SharedRowsTest, AlikeBeginningsAreOneRow) {
  // 5 6 | 7, 5 6 | 8 9, 5 6 8 9 | 0 and a stranger. A 0 at a row's end is a token, not padding.
  const Batch batch = BatchOf({{5, 6, 7}, {2, 6, 7}, {5, 6, 8, 9}, {5, 6, 8, 9, 0}}, 6);
  const std::optional<SharedRows> shared = ShareRows(batch, 4);
  ASSERT_TRUE(shared.has_value());
  // In lexicographic order: 2 6 7, 5 6 7, 8 9, 0; a ninth row would make twelve.
  ASSERT_EQ(shared->places_N.numel(), 12);
  const std::vector<int64_t> tokens(shared->tokens_1N.const_data_ptr<int64_t>(),
                                    shared->tokens_1N.const_data_ptr<int64_t>() + 9);
  EXPECT_EQ(tokens, (std::vector<int64_t>{2, 6, 7, 5, 6, 7, 8, 9, 0}));
  const at::Tensor rows_BT = shared->rows_BT.view({4, 6});
  EXPECT_TRUE(rows_BT[0].narrow(0, 0, 2).equal(rows_BT[3].narrow(0, 0, 2)));
  EXPECT_TRUE(rows_BT[2].narrow(0, 0, 4).equal(rows_BT[3].narrow(0, 0, 4)));
  EXPECT_FALSE(rows_BT[0][1].equal(rows_BT[1][1]));  // The same token after another one
  for (int64_t b = 0; b < 4; ++b) {
    for (int64_t t = 0; t < batch.lengths_B[b].item<int64_t>(); ++t) {
      const at::Tensor row = rows_BT[b][t];
      EXPECT_TRUE(shared->tokens_1N[0][row].equal(batch.tokens_BT[b][t]));
      EXPECT_TRUE(shared->positions_1N[0][row].equal(batch.positions_BT[b][t]));
    }
  }
}

TEST(SharedRowsTest, SpreadAndGatherAreInverse) {
  const Batch batch = BatchOf({{5, 6, 7, 1}, {5, 6, 8, 9}, {5, 6, 8, 1}}, 5);
  const std::optional<SharedRows> shared = ShareRows(batch, 1);
  ASSERT_TRUE(shared.has_value());
  const at::Tensor x = at::randn({1, shared->places_N.numel(), 2, 3}, at::kDouble);
  const at::Tensor whole = shared->Spread(x);
  EXPECT_EQ(whole.sizes(), (std::vector<int64_t>{3, 5, 2, 3}));
  EXPECT_TRUE(shared->Gather(whole).equal(x));
}

TEST(SharedRowsTest, NothingWhereNothingIsWonOrKnown) {
  EXPECT_FALSE(ShareRows(BatchOf({{1, 2, 3}, {4, 5, 6}}, 3), 1).has_value());
  EXPECT_FALSE(ShareRows(BatchOf({{1, 2, 3}, {1, 2, 3}}, 3), 8).has_value());
  Batch batch = BatchOf({{1, 2, 3}, {1, 2, 3}}, 3);
  EXPECT_TRUE(ShareRows(batch, 1).has_value());
  batch.documents_BT = at::zeros({2, 3}, at::kInt);
  EXPECT_FALSE(ShareRows(batch, 1).has_value());
  batch.documents_BT = at::Tensor();
  batch.lengths_B = at::Tensor();
  EXPECT_FALSE(ShareRows(batch, 1).has_value());
}

}  // namespace
}  // namespace shoal
