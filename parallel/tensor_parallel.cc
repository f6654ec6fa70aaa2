#include "parallel/tensor_parallel.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/status.h"
#include "kernels/embedding.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const TensorParallel& Saved(AutogradContext* ctx) {
  return *reinterpret_cast<const TensorParallel*>(ctx->saved_data["tensor_parallel"].toInt());
}

void Save(AutogradContext* ctx, const TensorParallel* parallel) {
  ctx->saved_data["tensor_parallel"] = reinterpret_cast<int64_t>(parallel);
}

struct EnterFunction : torch::autograd::Function<EnterFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const TensorParallel* parallel) {
    Save(ctx, parallel);
    return parallel->sequence_parallel() ? parallel->GatherRows(x) : x.view_as(x);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TensorParallel& parallel = Saved(ctx);
    if (parallel.sequence_parallel()) return {parallel.SumScatterRows(grads[0]), Tensor()};
    Tensor sum = grads[0].clone(at::MemoryFormat::Contiguous);
    parallel.SumOverRanks(sum);
    return {sum, Tensor()};
  }
};

struct LeaveFunction : torch::autograd::Function<LeaveFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const TensorParallel* parallel) {
    Save(ctx, parallel);
    if (parallel->sequence_parallel()) return parallel->SumScatterRows(x);
    Tensor sum = x.clone(at::MemoryFormat::Contiguous);
    parallel->SumOverRanks(sum);
    return sum;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TensorParallel& parallel = Saved(ctx);
    return {parallel.sequence_parallel() ? parallel.GatherRows(grads[0]) : grads[0], Tensor()};
  }
};

}  // namespace

TensorCut::Range EvenRange(int64_t size, const TensorPlace& place) {
  const int64_t share = size / place.size, rest = size % place.size;
  const int64_t begin = share * place.rank + std::min<int64_t>(place.rank, rest);
  return {.begin = begin, .end = begin + share + (place.rank < rest ? 1 : 0)};
}

Tensor TensorParallel::Enter(const Tensor& x_rC) const {
  return comm_.size() == 1 ? x_rC : EnterFunction::apply(x_rC, this);
}

Tensor TensorParallel::Leave(const Tensor& x_RC) const {
  return comm_.size() == 1 ? x_RC : LeaveFunction::apply(x_RC, this);
}

Tensor TensorParallel::Rows(const Tensor& x_R) const {
  if (comm_.size() == 1 || !sequence_parallel_) return x_R;
  const int64_t rows = x_R.size(0) / comm_.size();
  return x_R.narrow(0, rows * comm_.rank(), rows);
}

Tensor TensorParallel::Embedding(const Tensor& tokens_R, const Parameter& weight,
                                 const TensorCut::Range& range) const {
  if (comm_.size() == 1) return shoal::Embedding(tokens_R, weight);
  if (!tokens_R.is_cpu() && range.end > range.begin) {
    // How many tokens are this rank's is nothing to wait for a device for: it looks some row up for
    // the others' too, and drops it.
    const Tensor others =
        at::logical_or(tokens_R < range.begin, tokens_R >= range.end).unsqueeze(1);
    const Tensor rows = (tokens_R - range.begin).clamp(0, range.end - range.begin - 1);
    return shoal::Embedding(rows, weight).masked_fill(others, 0);
  }
  const Tensor places =
      at::nonzero(at::logical_and(tokens_R >= range.begin, tokens_R < range.end)).view({-1});
  const Tensor zeros = at::zeros({tokens_R.size(0), weight.value.size(1)}, weight.value.options());
  const Tensor found = shoal::Embedding(tokens_R.index_select(0, places) - range.begin, weight);
  return zeros.index_copy(0, places, found);
}

Tensor TensorParallel::GatherColumns(const Tensor& x, int64_t columns) const {
  if (comm_.size() == 1) return x;
  const int64_t rows = x.numel() / std::max<int64_t>(x.size(-1), 1),
                widest = (columns + comm_.size() - 1) / comm_.size();
  const Tensor mine = at::empty({rows, widest}, x.options());  // Shares differ by a column
  mine.narrow(1, 0, x.size(-1)).copy_(x.reshape({rows, x.size(-1)}));
  Tensor all = at::empty({comm_.size(), rows, widest}, x.options()),
         flat = all.view({comm_.size() * rows * widest});
  comm_.AllGather(flat, mine.view({rows * widest}));
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = columns;
  const Tensor whole = at::empty({rows, columns}, x.options());
  for (int rank = 0; rank < comm_.size(); ++rank) {
    const TensorCut::Range range = EvenRange(columns, {.rank = rank, .size = comm_.size()});
    const int64_t width = range.end - range.begin;
    whole.narrow(1, range.begin, width).copy_(all[rank].narrow(1, 0, width));
  }
  return whole.view(shape);
}

void TensorParallel::SumOverRanks(Tensor& x) const { comm_.AllReduce(x); }

void TensorParallel::MaxOverRanks(Tensor& x) const { comm_.AllReduce(x, ReduceOp::kMax); }

Tensor TensorParallel::GatherRows(const Tensor& x_rC) const {
  const Tensor mine = x_rC.contiguous();
  Tensor all = at::empty({mine.size(0) * comm_.size(), mine.size(1)}, mine.options());
  comm_.AllGather(all, mine);
  return all;
}

Tensor TensorParallel::SumScatterRows(const Tensor& x_RC) const {
  SHOAL_CHECK(x_RC.size(0) % comm_.size() == 0)
      << x_RC.size(0) << " rows do not divide over " << comm_.size() << " ranks";
  const Tensor part = x_RC.contiguous();
  Tensor mine = at::empty({part.size(0) / comm_.size(), part.size(1)}, part.options());
  comm_.ReduceScatter(mine, part);
  return mine;
}

}  // namespace shoal
