// Legend: as context_parallel.h; c ranks, M heads of any kind, m = M / c.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/status.h"
#include "parallel/context_parallel.h"

namespace shoal {
namespace {

// (c, ...), slice j for rank j -> (c, ...), slice j from rank j. The way back is the same.
struct ExchangeSlices : torch::autograd::Function<ExchangeSlices> {
  static Tensor Exchange(Communicator& comm, const Tensor& x) {
    const Tensor in = x.contiguous();
    Tensor out = at::empty_like(in);
    comm.AllToAll(out, in);
    return out;
  }
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                        Communicator* comm) {
    ctx->saved_data["comm"] = reinterpret_cast<int64_t>(comm);
    return Exchange(*comm, x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    auto* comm = reinterpret_cast<Communicator*>(ctx->saved_data["comm"].toInt());
    return {Exchange(*comm, grads[0]), Tensor()};
  }
};

// (c, B, t, m, H), each rank's places -> (B, T, m, H), in the order of the sequence.
Tensor InOrder(const Tensor& x) {
  const int64_t c = x.size(0), B = x.size(1), t = x.size(2), m = x.size(3), H = x.size(4);
  const Tensor halves = x.view({c, B, 2, t / 2, m, H});
  return at::cat({halves.select(2, 0), halves.select(2, 1).flip(0)})  // (2c, B, t/2, m, H)
      .transpose(0, 1)
      .reshape({B, c * t, m, H});
}

// The way back.
Tensor ByRank(const Tensor& x_BTmH, int64_t c) {
  const int64_t B = x_BTmH.size(0), T = x_BTmH.size(1), m = x_BTmH.size(2), H = x_BTmH.size(3);
  const Tensor pieces = x_BTmH.view({B, 2 * c, T / (2 * c), m, H}).transpose(0, 1);
  return at::stack({pieces.narrow(0, 0, c), pieces.narrow(0, c, c).flip(0)}, 2)
      .reshape({c, B, T / c, m, H});
}

// (B, t, M, H) -> (c, B, t, m, H): each rank's heads.
Tensor HeadsByRank(const Tensor& x, int64_t c) {
  return x.view({x.size(0), x.size(1), c, x.size(2) / c, x.size(3)}).permute({2, 0, 1, 3, 4});
}

}  // namespace

std::vector<int64_t> KeyHeadsOfRanks(int64_t queries, int64_t key_heads, int ranks) {
  const int64_t own = queries / ranks, group = queries / key_heads;
  // Whole groups of queries; queries of one group; else a key head for each query.
  const int64_t step = own % group == 0 ? group : group % own == 0 ? own : 1;
  std::vector<int64_t> heads;
  for (int64_t query = 0; query < queries; query += step) heads.push_back(query / group);
  return heads;
}

Tensor UlyssesAttention(const ContextParallel& context, const Tensor& q_BtNH, const Tensor& k_BtKH,
                        const Tensor& v_BtKH, const AttentionOptions& options) {
  const int64_t c = context.size(), queries = q_BtNH.size(2), own = queries / c;
  SHOAL_CHECK(own * c == queries) << queries << " heads over " << c << " ranks";
  const std::vector<int64_t> read = KeyHeadsOfRanks(queries, k_BtKH.size(2), context.size());
  const auto for_ranks = [&](const Tensor& x) {
    const bool all_once = std::ssize(read) == x.size(2);
    const at::TensorOptions indices = at::TensorOptions(at::kLong).device(x.device());
    return HeadsByRank(all_once ? x : x.index_select(2, at::tensor(read, indices)), c);
  };
  const int64_t keys = std::ssize(read) / c;
  const Tensor sent = at::cat({HeadsByRank(q_BtNH, c), for_ranks(k_BtKH), for_ranks(v_BtKH)}, 3);
  const Tensor heads = InOrder(ExchangeSlices::apply(sent, &context.comm()));
  AttentionOptions own_heads = options;
  own_heads.dropout.first_head += context.rank() * own;
  const Tensor out_BTmH = CausalAttention(heads.narrow(2, 0, own), heads.narrow(2, own, keys),
                                          heads.narrow(2, own + keys, keys), own_heads);
  const Tensor back = ExchangeSlices::apply(ByRank(out_BTmH, c), &context.comm());
  return back.permute({1, 2, 0, 3, 4}).reshape(q_BtNH.sizes());
}

}  // namespace shoal
