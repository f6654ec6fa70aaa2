#include "parallel/expert_parallel.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/status.h"
#include "parallel/comm/exchange_rows.h"

namespace shoal {
namespace {

using Exchange = ExpertParallel::Exchange;

Tensor ToExperts(Communicator& comm, const Tensor& rows, const Exchange& exchange) {
  return ExchangeRows(comm, rows.contiguous(), exchange.sent, exchange.received)
      .index_select(0, exchange.order);
}

Tensor FromExperts(Communicator& comm, const Tensor& rows, const Exchange& exchange) {
  return ExchangeRows(comm, rows.index_select(0, exchange.place), exchange.received, exchange.sent);
}

// Its backward pass is the way back.
struct MoveRowsFunction : torch::autograd::Function<MoveRowsFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& rows,
                        Communicator* comm, const Exchange& exchange, bool to_experts) {
    ctx->saved_data["comm"] = reinterpret_cast<int64_t>(comm);
    ctx->saved_data["sent"] = exchange.sent;
    ctx->saved_data["received"] = exchange.received;
    ctx->saved_data["order"] = exchange.order;
    ctx->saved_data["place"] = exchange.place;
    ctx->saved_data["to_experts"] = to_experts;
    return to_experts ? ToExperts(*comm, rows, exchange) : FromExperts(*comm, rows, exchange);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const Exchange exchange{.sent = ctx->saved_data["sent"].toIntVector(),
                            .received = ctx->saved_data["received"].toIntVector(),
                            .rows = {},
                            .order = ctx->saved_data["order"].toTensor(),
                            .place = ctx->saved_data["place"].toTensor()};
    Communicator& comm = *reinterpret_cast<Communicator*>(ctx->saved_data["comm"].toInt());
    const Tensor grad = ctx->saved_data["to_experts"].toBool()
                            ? FromExperts(comm, grads[0], exchange)
                            : ToExperts(comm, grads[0], exchange);
    return {grad, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Exchange ExpertParallel::Plan(std::span<const int64_t> rows) const {
  const int64_t ranks = size(), own = static_cast<int64_t>(rows.size()) / ranks;
  SHOAL_CHECK(own * ranks == static_cast<int64_t>(rows.size()))
      << rows.size() << " experts over " << ranks << " ranks";
  Tensor mine = at::empty({ranks * own}, at::kLong), theirs = at::empty_like(mine);
  std::copy(rows.begin(), rows.end(), mine.mutable_data_ptr<int64_t>());
  comm_.AllToAll(theirs, mine);
  const int64_t* counts = theirs.const_data_ptr<int64_t>();  // (ranks, own)
  Exchange exchange{.sent = std::vector<int64_t>(ranks, 0),
                    .received = std::vector<int64_t>(ranks, 0),
                    .rows = std::vector<int64_t>(own, 0),
                    .order = {},
                    .place = {}};
  std::vector<int64_t> first(ranks * own);  // Received row from which (rank, expert) begin
  int64_t total = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    for (int64_t expert = 0; expert < own; ++expert) {
      const int64_t count = counts[rank * own + expert];
      first[rank * own + expert] = total;
      total += count;
      exchange.sent[rank] += rows[rank * own + expert];
      exchange.received[rank] += count;
      exchange.rows[expert] += count;
    }
  }
  exchange.order = at::empty({total}, at::kLong);
  exchange.place = at::empty({total}, at::kLong);
  int64_t *order = exchange.order.mutable_data_ptr<int64_t>(),
          *place = exchange.place.mutable_data_ptr<int64_t>(), row = 0;
  for (int64_t expert = 0; expert < own; ++expert) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      for (int64_t i = 0; i < counts[rank * own + expert]; ++i, ++row) {
        order[row] = first[rank * own + expert] + i;
        place[order[row]] = row;
      }
    }
  }
  exchange.order = exchange.order.to(comm_.device(), at::kLong, /*non_blocking=*/true);
  exchange.place = exchange.place.to(comm_.device(), at::kLong, /*non_blocking=*/true);
  return exchange;
}

Tensor ExpertParallel::Dispatch(const Tensor& rows_SC, const Exchange& exchange) const {
  return MoveRowsFunction::apply(rows_SC, &comm_, exchange, /*to_experts=*/true);
}

Tensor ExpertParallel::Return(const Tensor& rows_SC, const Exchange& exchange) const {
  return MoveRowsFunction::apply(rows_SC, &comm_, exchange, /*to_experts=*/false);
}

}  // namespace shoal
