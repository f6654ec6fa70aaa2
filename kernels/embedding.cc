// Legend: V vocabulary, C channels.
#include "kernels/embedding.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/status.h"
#include "core/trace.h"
#include "kernels/fused.h"
#include "kernels/reference.h"
#include "kernels/take_rows.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Adds row i of dy to row indices[i] of grad, in the order of i: threads take columns, not rows.
template <class T>
void ScatterAdd(const Tensor& indices, const Tensor& dy, const Tensor& grad_VC) {
  constexpr int64_t kColumnGrain = 64;
  const int64_t columns = grad_VC.size(1), count = indices.numel();
  const int64_t* rows = Data<int64_t>(indices);
  const bool is_float = grad_VC.scalar_type() == at::kFloat;
  ParallelFor(columns, kColumnGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < count; ++i) {
      const T* source = Data<T>(dy) + i * columns + begin;
      const int64_t at = rows[i] * columns + begin;
      if (is_float) {
        simd::KernelsFor<T>().accumulate_float(source, MutableData<float>(grad_VC) + at,
                                               end - begin);
      } else {
        simd::KernelsFor<T>().accumulate_bf16(source, MutableData<simd::Bf16>(grad_VC) + at,
                                              end - begin);
      }
    }
  });
}

struct EmbeddingFunction : torch::autograd::Function<EmbeddingFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& indices, const Tensor& anchor,
                        const Parameter& weight) {
    const Tensor y = CopyRows(weight.value, indices);
    ctx->save_for_backward({indices});
    ctx->saved_data["grad"] = weight.grad;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kEmbedding, "embedding backward");
    const Tensor indices = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const Tensor grad_VC = ctx->saved_data["grad"].toTensor();
    if (!grad_VC.defined()) return {Tensor(), Tensor(), Tensor()};
    if (dy.is_cpu())
      DispatchFused(dy, [&]<class T>(T) { ScatterAdd<T>(indices, dy, grad_VC); });
    else
      AddRowsInOrder(dy.view({-1, grad_VC.size(1)}), indices.view({-1}), grad_VC);
    return {Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor Embedding(const Tensor& indices, const Parameter& weight) {
  const TraceSpan span(TraceKind::kEmbedding, "embedding");
  SHOAL_CHECK(weight.value.dim() == 2) << "Embedding: weight " << weight.value.sizes();
  const Tensor flat = indices.contiguous();
  CheckRows("Embedding", flat, weight.value.size(0));
  if (weight.value.is_cpu() && (!IsFused(weight.value) || !weight.value.is_contiguous()))
    return reference::Embedding(flat, WeightOf(weight));
  return EmbeddingFunction::apply(flat, weight.value, weight);
}

}  // namespace shoal
