#include "kernels/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
#include "kernels/fused.h"
#include "kernels/matmul.h"
#include "kernels/reference.h"
#include "kernels/threads.h"
#include "kernels/weight_gradients.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The weight as (in, out), whichever way it lies.
Tensor InOut(const Tensor& weight, LinearLayout layout) {
  return layout == LinearLayout::kInOut ? weight : weight.t();
}

Tensor Rows(const Tensor& x) {
  return x.dim() == 2 ? x : x.reshape({x.numel() / std::max<int64_t>(x.size(-1), 1), x.size(-1)});
}

// bias_grad += the sum of grad's rows, taken in pieces of a fixed size: the same on any number of
// threads.
void AddColumnSums(const Tensor& grad_RO, const Tensor& bias_grad) {
  if (!IsFused(grad_RO)) {
    bias_grad.add_(grad_RO.sum(0, /*keepdim=*/false, SumDtype(grad_RO.scalar_type())));
    return;
  }
  constexpr int64_t kPieceRows = 256;
  const Tensor grad = grad_RO.contiguous();
  const int64_t rows = grad.size(0), columns = grad.size(1),
                pieces = (rows + kPieceRows - 1) / kPieceRows;
  if (pieces == 0) return;
  Tensor partials = at::zeros({pieces, columns}, at::kFloat);
  DispatchFused(grad, [&]<class T>(T) {
    ParallelFor(pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t first = piece * kPieceRows;
        simd::KernelsFor<T>().column_sums(Data<T>(grad) + first * columns, columns,
                                          MutableData<float>(partials) + piece * columns,
                                          std::min(kPieceRows, rows - first), columns);
      }
    });
  });
  AddPartials(bias_grad, partials);
}

Tensor Product(const Tensor& x, const Tensor& weight, const Tensor& bias, LinearLayout layout,
               at::ScalarType dtype) {
  const Tensor weight_io = InOut(weight, layout);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight_io.size(1);
  Tensor y = at::empty(shape, x.options().dtype(dtype));
  Tensor y_RO = Rows(y);
  MatMul(Rows(x), weight_io, y_RO, {.accumulate = false, .bias = bias});
  return y;
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  // `anchor` ties the node to the graph when only weights want gradients. Weights and gradient
  // buffers are kept as plain tensors, past autograd's version check: ZeRO refills and reduces the
  // flat buffers under them between forward and backward.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& anchor,
                        const Parameter& weight, const Parameter& bias, LinearLayout layout) {
    const Tensor y = Product(x, weight.value, bias.value, layout, x.scalar_type());
    ctx->save_for_backward({x});
    ctx->saved_data["weight"] = weight.value.detach();
    ctx->saved_data["weight_grad"] = weight.grad;
    ctx->saved_data["bias_grad"] = bias.grad;
    ctx->saved_data["layout"] = static_cast<int64_t>(layout);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor x = ctx->get_saved_variables()[0];
    const auto layout = static_cast<LinearLayout>(ctx->saved_data["layout"].toInt());
    const Tensor grad_RO = Rows(grads[0]);
    if (Tensor bias_grad = ctx->saved_data["bias_grad"].toTensor(); bias_grad.defined()) {
      AddColumnSums(grad_RO, bias_grad);
    }
    if (Tensor weight_grad = ctx->saved_data["weight_grad"].toTensor(); weight_grad.defined()) {
      DoWeightGradient([grad_RO, x_RI = Rows(x), weight_grad, layout]() mutable {
        if (layout == LinearLayout::kOutIn) {
          MatMul(grad_RO.t(), x_RI, weight_grad, {.accumulate = true, .bias = {}});
        } else {
          MatMul(x_RI.t(), grad_RO, weight_grad, {.accumulate = true, .bias = {}});
        }
      });
    }
    Tensor grad_x;
    if (ctx->needs_input_grad(0)) {
      const Tensor weight_io = InOut(ctx->saved_data["weight"].toTensor(), layout);
      grad_x = at::empty(x.sizes(), grads[0].options());
      Tensor grad_RI = Rows(grad_x);
      MatMul(grad_RO, weight_io.t(), grad_RI);
    }
    return {grad_x, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct AddBiasFunction : torch::autograd::Function<AddBiasFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& anchor,
                        const Parameter& bias) {
    ctx->saved_data["bias_grad"] = bias.grad;
    return x + bias.value.detach();
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (Tensor bias_grad = ctx->saved_data["bias_grad"].toTensor(); bias_grad.defined())
      AddColumnSums(Rows(grads[0]), bias_grad);
    return {grads[0], Tensor(), Tensor()};
  }
};

}  // namespace

Tensor AddBias(const Tensor& x, const Parameter& bias) {
  return AddBiasFunction::apply(x, bias.value, bias);
}

Tensor Linear(const Tensor& x, const Parameter& weight, const Parameter* bias,
              LinearLayout layout) {
  const Parameter no_bias;
  if (!bias) bias = &no_bias;
  if (!at::GradMode::is_enabled())
    return Product(x, weight.value, bias->value, layout, x.scalar_type());
  const Tensor& anchor = bias->grad.defined() ? bias->value : weight.value;
  return LinearFunction::apply(x, anchor, weight, *bias, layout);
}

Tensor FloatLinear(const Tensor& x, const Parameter& weight) {
  const at::NoGradGuard no_grad;
  return Product(x, weight.value, {}, LinearLayout::kOutIn, SumDtype(x.scalar_type()));
}

}  // namespace shoal
