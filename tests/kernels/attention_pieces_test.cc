// Attention a run of queries and a run of keys at a time equals attention over whole sequences.
#include <cmath>

#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/attention.h"
#include "kernels/reference.h"
#include "tests/kernels/gradients.h"
#include "tests/kernels/isa.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Pieces of a sequence end at `ends`; a query meets those of its keys from last to first.
struct Cut {
  std::vector<int64_t> ends;
  AttentionOptions options;
  Tensor starts_BT = {};

  template <class Visit>
  void ForPieces(Visit visit) const {
    for (size_t q = 0; q < ends.size(); ++q) {
      const int64_t query = q == 0 ? 0 : ends[q - 1], queries = ends[q] - query;
      for (size_t k = q + 1; k-- > 0;) {
        const int64_t key = k == 0 ? 0 : ends[k - 1];
        AttentionPiece piece{.scale = options.scale,
                             .query_place = query,
                             .key_place = key,
                             .dropout = options.dropout};
        if (starts_BT.defined()) piece.starts_BT = starts_BT.narrow(1, query, queries);
        visit(piece, queries, ends[k] - key);
      }
    }
  }
};

struct InPieces : torch::autograd::Function<InPieces> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Cut* cut) {
    AttentionSoFar all(q);
    cut->ForPieces([&](const AttentionPiece& piece, int64_t queries, int64_t keys) {
      AttentionSoFar part = all.Narrow(piece.query_place, queries);
      AttendPiece(q.narrow(1, piece.query_place, queries), k.narrow(1, piece.key_place, keys),
                  v.narrow(1, piece.key_place, keys), piece, part);
    });
    ctx->save_for_backward({q, k, v, all.out_BTNH});
    ctx->saved_data["lse"] = all.lse_BNT;
    ctx->saved_data["cut"] = reinterpret_cast<int64_t>(cut);
    return all.out_BTNH;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const AttentionSoFar all(saved[3], ctx->saved_data["lse"].toTensor());
    const auto sum = all.lse_BNT.scalar_type();
    const Tensor dq = at::zeros(q.sizes(), sum), dk = at::zeros(k.sizes(), sum),
                 dv = at::zeros(v.sizes(), sum);
    const Cut& cut = *reinterpret_cast<const Cut*>(ctx->saved_data["cut"].toInt());
    cut.ForPieces([&](const AttentionPiece& piece, int64_t queries, int64_t keys) {
      AttendPieceBackward(q.narrow(1, piece.query_place, queries),
                          k.narrow(1, piece.key_place, keys), v.narrow(1, piece.key_place, keys),
                          piece, all.Narrow(piece.query_place, queries),
                          grads[0].narrow(1, piece.query_place, queries),
                          {.q_BTNH = dq.narrow(1, piece.query_place, queries),
                           .k_BSKH = dk.narrow(1, piece.key_place, keys),
                           .v_BSKH = dv.narrow(1, piece.key_place, keys)});
    });
    return {dq.to(q.scalar_type()), dk.to(k.scalar_type()), dv.to(v.scalar_type()), Tensor()};
  }
};

std::vector<Tensor> RandomQkv(int64_t batch, int64_t length, int64_t heads, int64_t key_heads,
                              int64_t head_dim) {
  return {at::randn({batch, length, heads, head_dim}, at::kDouble),
          at::randn({batch, length, key_heads, head_dim}, at::kDouble),
          at::randn({batch, length, key_heads, head_dim}, at::kDouble)};
}

void ExpectEqualsWhole(const std::vector<Tensor>& inputs, Cut cut, at::ScalarType dtype) {
  if (cut.options.documents_BT.defined()) cut.starts_BT = DocumentStarts(cut.options.documents_BT);
  const Operation pieces = [&](const std::vector<Tensor>& x, const std::vector<Parameter>&) {
    return InPieces::apply(x[0], x[1], x[2], &cut);
  };
  const Operation whole = [&](const std::vector<Tensor>& x, const std::vector<Parameter>&) {
    return reference::CausalAttention(x[0], x[1], x[2], cut.options);
  };
  ExpectMatches(pieces, whole, inputs, {}, dtype, dtype == at::kBFloat16 ? 2 : 1);
}

TEST(AttentionPieces, EqualWholeSequences) {
  at::manual_seed(1);
  ForEachIsa([&] {
    for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      for (const std::vector<int64_t>& ends :
           {std::vector<int64_t>{200}, {100, 200}, {1, 97, 130, 200}, {64, 128, 192, 200}}) {
        ExpectEqualsWhole(RandomQkv(2, 200, 4, 2, 16), {.ends = ends, .options = {}}, dtype);
        ExpectEqualsWhole(RandomQkv(1, 200, 3, 1, 33), {.ends = ends, .options = {}}, dtype);
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
      ExpectEqualsWhole(RandomQkv(3, 200, 2, 1, 16),
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
      ExpectEqualsWhole(
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
