#include "models/key_value_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/reference.h"

namespace shoal {
namespace {

KeyValueCache MakeCache(int64_t block_places = 4) {
  return KeyValueCache({.num_layers = 2,
                        .num_key_value_heads = 2,
                        .head_dim = 8,
                        .dtype = at::kFloat,
                        .block_places = block_places});
}

Tensor Random(int64_t tokens, int64_t heads) { return at::randn({1, tokens, heads, 8}); }

// Keys and values that a sequence has been given, a layer each.
struct Given {
  std::vector<Tensor> k{2}, v{2};
};

// `tokens` more tokens of a sequence; every layer's attention is that of all it has been given.
void Read(KeyValueCache& cache, KeyValueCache::Sequence sequence, int64_t tokens, Given& given) {
  const KeyValueCache::Segment segment{sequence, tokens};
  cache.BeginPass({&segment, 1});
  for (int layer : {0, 1}) {
    const Tensor q = Random(tokens, 4), k = Random(tokens, 2), v = Random(tokens, 2);
    Tensor &all_k = given.k[layer], &all_v = given.v[layer];
    all_k = all_k.defined() ? at::cat({all_k, k}, 1) : k;
    all_v = all_v.defined() ? at::cat({all_v, v}, 1) : v;
    const Tensor want =
        reference::CachedAttention(q, all_k, all_v, at::full({1}, all_k.size(1), at::kLong), 0.5);
    EXPECT_TRUE(cache.Attend(layer, q, k, v, 0.5).allclose(want, 1e-4, 1e-5));
  }
  cache.EndPass();
}

TEST(KeyValueCache, HoldsTheBlocksThatTheFormulaSays) {
  KeyValueCache cache = MakeCache();
  EXPECT_EQ(cache.block_bytes(), 2 * 2 * 2 * 4 * 8 * 4);
  Given a, b;
  const auto first = cache.Add(), second = cache.Add();
  Read(cache, first, 5, a);
  Read(cache, second, 4, b);
  EXPECT_EQ(cache.blocks_in_use(), 2 + 1);
  Read(cache, second, 1, b);
  EXPECT_EQ(cache.blocks_in_use(), 2 + 2);
  EXPECT_EQ(cache.length(first), 5);
  cache.Remove(first);
  EXPECT_EQ(cache.blocks_in_use(), 2);
  const int64_t held = cache.blocks_held();
  Given c;
  const auto third = cache.Add();
  Read(cache, third, 30, c);  // In blocks that were given back and others
  Read(cache, second, 9, b);
  EXPECT_EQ(cache.blocks_held(), held);
}

TEST(KeyValueCache, ForksShareUntilTheyWrite) {
  at::manual_seed(3);
  KeyValueCache cache = MakeCache();
  Given a;
  const auto trunk = cache.Add();
  Read(cache, trunk, 6, a);
  Given b = a, c = a;
  const auto left = cache.Fork(trunk), right = cache.Fork(trunk);
  EXPECT_EQ(cache.blocks_in_use(), 2);
  Read(cache, left, 1, b);  // Copies the half-full block, shares the full one
  EXPECT_EQ(cache.blocks_in_use(), 3);
  Read(cache, right, 3, c);
  EXPECT_EQ(cache.blocks_in_use(), 5);
  Read(cache, trunk, 2, a);  // Alone with its last block again: no copy
  EXPECT_EQ(cache.blocks_in_use(), 5);
  cache.Remove(trunk);
  for (int i = 0; i < 5; ++i) {
    Read(cache, left, 1, b);
    Read(cache, right, 2, c);
  }
  cache.Remove(left);
  cache.Remove(right);
  EXPECT_EQ(cache.blocks_in_use(), 0);
}

// Memory comes a few blocks at a time; tables hold on to what came before.
TEST(KeyValueCache, GrowsPastOneAllocation) {
  KeyValueCache cache = MakeCache(1024);
  Given a;
  const auto sequence = cache.Add();
  Read(cache, sequence, 1, a);
  const int64_t at_once = cache.blocks_held();
  std::vector<KeyValueCache::Sequence> others;
  Given b;
  for (int64_t i = 0; i < at_once; ++i) {
    others.push_back(cache.Add());
    Given other;
    Read(cache, others.back(), 1, i == 0 ? b : other);
  }
  EXPECT_GT(cache.blocks_held(), at_once);
  Read(cache, sequence, 1100, a);
  Read(cache, others[0], 3, b);
}

}  // namespace
}  // namespace shoal
