// Attention over a sequence cut in pieces, as a differentiable operation.
#pragma once

#include <vector>

#include <torch/csrc/autograd/custom_function.h>

#include "kernels/attention.h"
#include "kernels/reference.h"
#include "tests/kernels/gradients.h"

namespace shoal {

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
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Cut* cut) {
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
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const torch::autograd::variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const AttentionSoFar all(saved[3], ctx->saved_data["lse"].toTensor());
    const auto sum = all.lse_BNT.options();
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

inline std::vector<Tensor> RandomQkv(int64_t batch, int64_t length, int64_t heads,
                                     int64_t key_heads, int64_t head_dim) {
  return {at::randn({batch, length, heads, head_dim}, at::kDouble),
          at::randn({batch, length, key_heads, head_dim}, at::kDouble),
          at::randn({batch, length, key_heads, head_dim}, at::kDouble)};
}

inline void ExpectPiecesEqualWhole(const std::vector<Tensor>& inputs, Cut cut, at::ScalarType dtype,
                                   c10::Device device = at::kCPU) {
  if (cut.options.documents_BT.defined())
    cut.starts_BT = DocumentStarts(cut.options.documents_BT.to(device));
  const Operation pieces = [&](const std::vector<Tensor>& x, const std::vector<Parameter>&) {
    return InPieces::apply(x[0], x[1], x[2], &cut);
  };
  const Operation whole = [&](const std::vector<Tensor>& x, const std::vector<Parameter>&) {
    return reference::CausalAttention(x[0], x[1], x[2], cut.options);
  };
  ExpectMatches(pieces, whole, inputs, {}, dtype, dtype == at::kBFloat16 ? 2 : 1, device);
}

}  // namespace shoal
