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
  const Tensor places =
      at::nonzero(at::logical_and(tokens_R >= range.begin, tokens_R < range.end)).view({-1});
  const Tensor zeros = at::zeros({tokens_R.size(0), weight.value.size(1)}, weight.value.options());
  const Tensor found = shoal::Embedding(tokens_R.index_select(0, places) - range.begin, weight);
  return zeros.index_copy(0, places, found);
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
