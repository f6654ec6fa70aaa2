#include "kernels/attention.h"

#include <gtest/gtest.h>

#include "kernels/reference.h"
#include "kernels/threads.h"
#include "tests/kernels/gradients.h"
#include "tests/kernels/isa.h"
#include "tests/kernels/paged_sequences.h"

namespace shoal {
namespace {

struct Shape {
  int64_t batch, length, heads, key_heads, head_dim;
};

constexpr Shape kShapes[] = {{2, 1, 2, 1, 8},    {1, 3, 4, 2, 17},   {2, 65, 2, 2, 16},
                             {1, 97, 3, 1, 64},  {1, 200, 2, 1, 33}, {1, 130, 1, 1, 64},
                             {1, 260, 2, 2, 80}, {0, 5, 2, 1, 8}};

Tensors RandomHeads(const Shape& s) {
  return {at::randn({s.batch, s.length, s.heads, s.head_dim}, at::kDouble),
          at::randn({s.batch, s.length, s.key_heads, s.head_dim}, at::kDouble),
          at::randn({s.batch, s.length, s.key_heads, s.head_dim}, at::kDouble)};
}

void ExpectEqualsReference(const Tensors& inputs, at::ScalarType dtype,
                           const AttentionOptions& options, double tolerance_factor = 1) {
  const Operation fused = [&](const Tensors& x, const Parameters&) {
    return CausalAttention(x[0], x[1], x[2], options);
  };
  const Operation exact = [&](const Tensors& x, const Parameters&) {
    return reference::CausalAttention(x[0], x[1], x[2], options);
  };
  // The probabilities and score gradients of the bfloat16 path are rounded once more.
  ExpectMatches(fused, exact, inputs, {}, dtype,
                tolerance_factor * (dtype == at::kBFloat16 ? 2 : 1));
}

TEST(CausalAttentionTest, EqualsReference) {
  at::manual_seed(1);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const Shape& shape : kShapes) {
        SCOPED_TRACE(absl::StrCat("T ", shape.length, " N ", shape.heads, " H ", shape.head_dim));
        ExpectEqualsReference(RandomHeads(shape), dtype, {});
      }
    }
  });
}

TEST(CausalAttentionTest, DocumentsDoNotSeeEachOther) {
  at::manual_seed(2);
  Tensor documents = at::zeros({2, 200}, at::kInt);
  documents[0].narrow(0, 70, 130) += 1;
  documents[0].narrow(0, 71, 129) += 1;
  documents[0].narrow(0, 160, 40) += 1;
  documents[1].narrow(0, 1, 199) += 5;
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      ExpectEqualsReference(RandomHeads({2, 200, 2, 1, 16}), dtype,
                            {.scale = 0, .documents_BT = documents});
    }
  });
}

TEST(CausalAttentionTest, DropsTheProbabilitiesThatTheReferenceDrops) {
  at::manual_seed(4);
  const Tensor keys = at::tensor({int64_t{123456789012345}, int64_t{-77}});
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const Shape& shape : {Shape{2, 65, 2, 2, 16}, Shape{2, 130, 4, 2, 33}}) {
        ExpectEqualsReference(RandomHeads(shape), dtype,
                              {.dropout = {.rate = 0.3, .keys_B = keys, .first_head = 5}});
      }
    }
  });
}

TEST(CausalAttentionTest, ScaleAndLargeScores) {
  at::manual_seed(3);
  Tensors inputs = RandomHeads({1, 80, 1, 1, 16});
  inputs[0] *= 30;
  // Scores of some hundreds: their last bit moves the probabilities by as many ulp.
  ExpectEqualsReference(inputs, at::kFloat, {.scale = 0.7, .documents_BT = {}}, 50);
}

TEST(CausalAttentionTest, ReadsHeadsOutOfOneProduct) {
  Tensor qkv = at::randn({2, 70, 4, 32});
  Tensor q = qkv.narrow(2, 0, 2), k = qkv.narrow(2, 2, 1), v = qkv.narrow(2, 3, 1);
  EXPECT_TRUE(Near(CausalAttention(q, k, v), reference::CausalAttention(q, k, v, {}), at::kFloat));
  Tensor turned = qkv.transpose(2, 3).contiguous().transpose(2, 3);
  EXPECT_TRUE(
      Near(CausalAttention(turned.narrow(2, 0, 2), turned.narrow(2, 2, 1), turned.narrow(2, 3, 1)),
           reference::CausalAttention(q, k, v, {}), at::kFloat));
}

TEST(CausalAttentionTest, FiniteDifferences) {
  at::manual_seed(4);
  const Operation operation = [](const Tensors& x, const Parameters&) {
    return CausalAttention(x[0], x[1], x[2]);
  };
  ExpectFiniteDifferences(operation, RandomHeads({1, 3, 2, 1, 2}), {});
}

TEST(CausalAttentionTest, NanStaysInItsRows) {
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      Tensor q = at::randn({1, 100, 1, 16}).to(dtype), k = at::randn({1, 100, 1, 16}).to(dtype),
             v = at::randn({1, 100, 1, 16}).to(dtype);
      q[0][40][0][3] = std::numeric_limits<float>::quiet_NaN();
      Tensor bad = CausalAttention(q, k, v).isnan().any(-1).view({100});
      EXPECT_TRUE(bad[40].item<bool>());
      EXPECT_EQ(bad.sum().item<int64_t>(), 1);
    }
  });
}

TEST(CausalAttentionTest, SameBitsOnAnyNumberOfThreads) {
  at::manual_seed(5);
  Tensor results[2], grads[2];
  Tensor q = at::randn({2, 100, 4, 16}), k = at::randn({2, 100, 2, 16}),
         v = at::randn({2, 100, 2, 16});
  for (int i = 0; i < 2; ++i) {
    SetNumThreads(i + 1);
    Tensor leaf = k.clone().requires_grad_(true);
    results[i] = CausalAttention(q, leaf, v);
    results[i].sum().backward();
    grads[i] = leaf.grad();
  }
  SetNumThreads(1);
  EXPECT_TRUE(results[0].equal(results[1]));
  EXPECT_TRUE(grads[0].equal(grads[1]));
}

TEST(PagedAttentionTest, EqualsReference) {
  at::manual_seed(6);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const PagedHeads& shape : {PagedHeads{4, 2, 64}, {3, 3, 17}, {6, 1, 80}, {2, 2, 128}}) {
        // Three sequences grow by pieces: a prompt, tokens, a longer piece, a token.
        ExpectPagedEqualsReference(shape, dtype, at::kCPU,
                                   {{20, 3, 1}, {1, 1, 1}, {4, 0, 18}, {1, 1, 20}});
      }
    }
  });
}

TEST(PagedAttentionTest, EqualsTheTrainingPass) {
  at::manual_seed(8);
  Tensor q = at::randn({50, 4, 32}), k = at::randn({50, 2, 32}), v = at::randn({50, 2, 32});
  const Tensor want = CausalAttention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)).squeeze(0);
  PagedBlocks blocks({.key_heads = 2, .head_dim = 32, .places = 16}, at::kFloat);
  const std::vector<const void*> table = blocks.Take(50);
  const PagedSegment prompt{.first_row = 0, .num_tokens = 49, .past = 0, .blocks = table.data()};
  const auto first = [](const Tensor& x) { return x.narrow(0, 0, 49); };
  EXPECT_TRUE(Near(PagedAttention(first(q), first(k), first(v), {&prompt, 1}, blocks.layout()),
                   first(want), at::kFloat));
  const PagedSegment token{.first_row = 0, .num_tokens = 1, .past = 49, .blocks = table.data()};
  const auto last = [](const Tensor& x) { return x.narrow(0, 49, 1); };
  EXPECT_TRUE(Near(PagedAttention(last(q), last(k), last(v), {&token, 1}, blocks.layout()),
                   last(want), at::kFloat));
}

}  // namespace
}  // namespace shoal
