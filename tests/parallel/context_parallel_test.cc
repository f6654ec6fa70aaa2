#include "parallel/context_parallel.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/comm/local_communicator.h"

namespace shoal {
namespace {

using enum ContextParallel::Method;
using ::testing::ElementsAre;

template <class F>
void ForRanks(int ranks, F test) {
  const absl::Status status = RunRanks(ranks, [&](Communicator& comm) {
    test(comm);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(ContextParallel, CutsSequencesSoThatRanksHaveTheSameToDo) {
  constexpr int kRanks = 3;
  constexpr int64_t kLength = 24;
  Batch whole{.tokens_BT = at::arange(2 * kLength).view({2, kLength}),
              .targets_BT = at::arange(2 * kLength).view({2, kLength}) + 1,
              .positions_BT = at::arange(kLength).repeat({2, 1}),
              .documents_BT = at::zeros({2, kLength}, at::kInt),
              .sequences_B = at::arange(2)};
  whole.targets_BT[1].narrow(0, 5, 10) = Batch::kIgnoreIndex;
  whole.documents_BT[1].narrow(0, 7, kLength - 7) += 1;
  whole.num_targets = 2 * kLength - 10;
  std::vector<int64_t> places[kRanks], targets(kRanks);
  ForRanks(kRanks, [&](Communicator& comm) {
    const Batch own = ContextParallel(comm, kRing).OwnPlaces(whole);
    const Tensor positions = own.positions_BT[0].contiguous();
    places[comm.rank()].assign(positions.const_data_ptr<int64_t>(),
                               positions.const_data_ptr<int64_t>() + positions.numel());
    targets[comm.rank()] = own.num_targets;
    EXPECT_TRUE(own.tokens_BT.remainder(kLength).equal(own.positions_BT));
    EXPECT_TRUE(own.tokens_BT[1].ge(kLength).all().item<bool>());
    EXPECT_TRUE(own.sequences_B.equal(whole.sequences_B));
    // The place where its document begins.
    EXPECT_TRUE(own.documents_BT[0].eq(0).all().item<bool>());
    EXPECT_TRUE(
        own.documents_BT[1].eq(own.positions_BT[1].ge(7).to(at::kInt) * 7).all().item<bool>());
    const Tensor all = ContextParallel(comm, kUlysses).OwnPlaces(whole).documents_BT;
    EXPECT_EQ(all.sizes(), whole.documents_BT.sizes());
  });
  EXPECT_THAT(places[0], ElementsAre(0, 1, 2, 3, 20, 21, 22, 23));
  EXPECT_THAT(places[1], ElementsAre(4, 5, 6, 7, 16, 17, 18, 19));
  EXPECT_THAT(places[2], ElementsAre(8, 9, 10, 11, 12, 13, 14, 15));
  EXPECT_EQ(targets[0] + targets[1] + targets[2], whole.num_targets);
}

TEST(ContextParallel, KeyHeadsThatRanksRead) {
  EXPECT_THAT(KeyHeadsOfRanks(8, 4, 2), ElementsAre(0, 1, 2, 3));        // Whole groups
  EXPECT_THAT(KeyHeadsOfRanks(8, 2, 4), ElementsAre(0, 0, 1, 1));        // Parts of groups
  EXPECT_THAT(KeyHeadsOfRanks(6, 2, 3), ElementsAre(0, 0, 0, 1, 1, 1));  // Neither
}

// q, k, v, the output's gradient, on every rank alike; then each takes its places.
void ExpectAttentionOfWholeSequences(int ranks, int64_t heads, int64_t key_heads,
                                     ContextParallel::Method method, at::ScalarType dtype) {
  constexpr int64_t kLength = 48, kHead = 8;
  at::manual_seed(7);
  const auto random = [&](int64_t n) {
    return at::randn({2, kLength, n, kHead}, at::kDouble).to(dtype);
  };
  const Tensor q = random(heads), k = random(key_heads), v = random(key_heads),
               upstream = random(heads);
  const Tensor documents = at::arange(kLength, at::kInt).div(11, "floor").repeat({2, 1});
  std::vector<Tensor> want;
  const auto run = [&](const std::vector<Tensor>& x, auto attention) {
    std::vector<Tensor> leaves;
    for (int i = 0; i < 3; ++i) leaves.push_back(x[i].detach().clone().requires_grad_(true));
    const Tensor out = attention(leaves[0], leaves[1], leaves[2]);
    out.backward(x[3]);
    return std::vector<Tensor>{out.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
  };
  want = run({q, k, v, upstream}, [&](const Tensor& a, const Tensor& b, const Tensor& c) {
    return CausalAttention(a, b, c, {.documents_BT = documents});
  });
  ForRanks(ranks, [&](Communicator& comm) {
    const ContextParallel context(comm, method);
    const Tensor places = context.Places(kLength / ranks);
    const auto own = [&](const Tensor& x) { return x.index_select(1, places); };
    const Tensor starts = DocumentStarts(documents);
    const auto got = run({own(q), own(k), own(v), own(upstream)},
                         [&](const Tensor& a, const Tensor& b, const Tensor& c) {
                           return context.Attention(
                               a, b, c, {.documents_BT = method == kRing ? own(starts) : starts});
                         });
    const double tolerance = dtype == at::kDouble ? 1e-13 : dtype == at::kFloat ? 3e-6 : 3e-2;
    for (size_t i = 0; i < got.size(); ++i) {
      const Tensor difference = (got[i] - own(want[i])).to(at::kDouble).abs().max();
      EXPECT_LT(difference.item<double>(),
                tolerance * want[i].to(at::kDouble).abs().max().item<double>())
          << (method == kRing ? "ring" : "ulysses") << " " << i << ", " << ranks << " ranks";
    }
    const int64_t t = kLength / ranks, rows = 2 * t, element = c10::elementSize(dtype),
                  sum = dtype == at::kDouble ? 8 : 4;
    const int64_t read = std::ssize(KeyHeadsOfRanks(heads, key_heads, ranks));
    const int64_t bytes =
        method == kRing ? (ranks - 1) * 2 * rows * key_heads * kHead * (2 * element + sum)
                        : 2 * (ranks - 1) * rows * (2 * heads + 2 * read) * kHead * element / ranks;
    EXPECT_EQ(comm.counters().bytes_sent, bytes) << (method == kRing ? "ring" : "ulysses");
  });
}

TEST(ContextParallel, AttentionOfWholeSequencesAndItsBytes) {
  for (auto method : {kRing, kUlysses}) {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      for (int ranks : {1, 2, 3, 4}) {
        ExpectAttentionOfWholeSequences(ranks, 12, 12, method, dtype);
        ExpectAttentionOfWholeSequences(ranks, 12, 4, method, dtype);
        ExpectAttentionOfWholeSequences(ranks, 12, 2, method, dtype);
        ExpectAttentionOfWholeSequences(ranks, 12, 1, method, dtype);
      }
    }
  }
}

}  // namespace
}  // namespace shoal
