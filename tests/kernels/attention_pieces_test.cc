// Attention a run of queries and a run of keys at a time equals attention over whole sequences.
#include <cmath>

#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "tests/kernels/in_pieces.h"
#include "tests/kernels/isa.h"

namespace shoal {
namespace {

TEST(AttentionPieces, EqualWholeSequences) {
  at::manual_seed(1);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      for (const std::vector<int64_t>& ends :
           {std::vector<int64_t>{200}, {100, 200}, {1, 97, 130, 200}, {64, 128, 192, 200}}) {
        ExpectPiecesEqualWhole(RandomQkv(2, 200, 4, 2, 16), {.ends = ends, .options = {}}, dtype);
        ExpectPiecesEqualWhole(RandomQkv(1, 200, 3, 1, 33), {.ends = ends, .options = {}}, dtype);
      }
    }
  });
}

// Documents that end inside pieces, at their ends, and hide whole pieces in one sequence only.
TEST(AttentionPieces, DocumentsDoNotSeeEachOther) {
  at::manual_seed(2);
  Tensor documents = at::zeros({3, 200}, at::kInt);
  documents[0].narrow(0, 100, 100) += 1;
  documents[0].narrow(0, 170, 30) += 1;
  documents[1].narrow(0, 3, 197) += 1;
  documents[1].narrow(0, 49, 151) += 1;
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      ExpectPiecesEqualWhole(RandomQkv(3, 200, 2, 1, 16),
                             {.ends = {50, 100, 150, 200}, .options = {.documents_BT = documents}},
                             dtype);
    }
  });
}

TEST(AttentionPieces, DropWhatWholeSequencesDrop) {
  at::manual_seed(3);
  const Tensor keys = at::tensor({int64_t{123456789012345}, int64_t{-77}});
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      ExpectPiecesEqualWhole(
          RandomQkv(2, 130, 4, 2, 33),
          {.ends = {40, 65, 130},
           .options = {.scale = 0.3, .dropout = {.rate = 0.3, .keys_B = keys, .first_head = 5}}},
          dtype);
    }
  });
}

TEST(AttentionPieces, LogSumExpOfWhatIsSeen) {
  at::manual_seed(4);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat}) {
      const auto x = RandomQkv(1, 70, 1, 1, 16);
      const Tensor q = x[0].to(dtype), k = x[1].to(dtype), v = x[2].to(dtype);
      AttentionSoFar so_far(q);
      EXPECT_TRUE(so_far.lse_BNT.eq(-INFINITY).all().item<bool>());
      // Keys 100 to 169 of queries 90 to 159: the first ten see none.
      AttendPiece(q, k, v, {.query_place = 90, .key_place = 100}, so_far);
      EXPECT_TRUE(so_far.lse_BNT.narrow(2, 0, 10).eq(-INFINITY).all().item<bool>());
      EXPECT_TRUE(so_far.out_BTNH.narrow(1, 0, 10).eq(0).all().item<bool>());
      const Tensor scores =
          at::matmul(q[0].select(1, 0), k[0].select(1, 0).t()).to(at::kDouble) / 4;
      for (int64_t t = 10; t < 70; ++t) {
        const double want =
            scores[t].narrow(0, 0, t - 9).logsumexp(0).item<double>() / std::log(2.0);
        EXPECT_NEAR(so_far.lse_BNT[0][0][t].item<double>(), want,
                    dtype == at::kDouble ? 1e-12 : 1e-5);
      }
    }
  });
}

}  // namespace
}  // namespace shoal
