#include "parallel/flat_layout.h"

#include <ATen/ops/arange.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

using ::testing::ElementsAre;

ParameterSpec Spec(const std::string& name, std::vector<int64_t> shape) {
  return {.name = name, .shape = std::move(shape), .init = {}};
}

TEST(FlatLayout, PutsParametersEndToEndAndPadsToEqualShards) {
  const FlatLayout layout({Spec("a", {2, 3}), Spec("empty", {0, 4}), Spec("b", {5})}, 4);
  EXPECT_EQ(layout.numel(), 11);
  EXPECT_EQ(layout.shard_numel(), 3);
  EXPECT_EQ(layout.padded_numel(), 12);
  EXPECT_EQ(layout.offset(2), 6);
}

TEST(FlatLayout, SlicesOfAllShardsTileEveryParameterOnce) {
  const std::vector<ParameterSpec> specs = {Spec("a", {7}), Spec("b", {0}), Spec("c", {1}),
                                            Spec("d", {3, 5})};
  for (int shards = 1; shards <= 9; ++shards) {
    const FlatLayout layout(specs, shards);
    std::vector<std::vector<int>> seen = {
        std::vector<int>(7), {}, std::vector<int>(1), std::vector<int>(15)};
    for (int r = 0; r < shards; ++r) {
      const int64_t begin = r * layout.shard_numel();
      for (const auto& slice : layout.Slices(begin, begin + layout.shard_numel())) {
        EXPECT_GT(slice.count, 0);
        EXPECT_EQ(slice.offset, layout.offset(slice.parameter) + slice.first);
        for (int64_t i = 0; i < slice.count; ++i) ++seen[slice.parameter][slice.first + i];
      }
    }
    for (const auto& counts : seen) EXPECT_THAT(counts, ::testing::Each(1)) << shards << " shards";
  }
}

TEST(FlatLayout, ViewsShareMemoryWithTheFlatBuffer) {
  const FlatLayout layout({Spec("a", {2}), Spec("b", {2, 2})}, 1);
  Tensor flat = at::arange(6, at::kFloat);
  Tensor b = layout.View(flat, 1);
  EXPECT_THAT(b.sizes(), ElementsAre(2, 2));
  b[1][1] = 50;
  EXPECT_EQ(flat[5].item<float>(), 50);
}

}  // namespace
}  // namespace shoal
