#include "kernels/experts.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
#include "core/status.h"
#include "kernels/matmul.h"
#include "kernels/weight_gradients.h"

namespace shoal {
namespace {

using ExpertContext = torch::autograd::AutogradContext;
using ExpertTensors = torch::autograd::variable_list;

// [Note: few sizes of products]
// oneDNN compiles a kernel for every size and keeps it: milliseconds and megabytes. An expert gets
// another number of rows in every pass, so its rows are multiplied in pieces of a few sizes, powers
// of two, and what remains: fewer rows than the smallest, which take loops of our own (matmul.h)
// or, as the inner dimension of a weight's gradient, are filled up with zeros. Other devices'
// libraries take any size: an expert's rows are one product there.
constexpr int64_t kSmallestPiece = 64, kLargestPiece = 1024;
static_assert(kSmallestPiece <= kMaxRowsOfEqualBits);

// Calls visit(first row, rows) for pieces of `rows` rows from `first` on.
template <typename Visit>
void ForPieces(const at::Device& device, int64_t first, int64_t rows, const Visit& visit) {
  for (int64_t piece = kLargestPiece; device.is_cpu() && piece >= kSmallestPiece; piece /= 2) {
    for (; rows >= piece; first += piece, rows -= piece) visit(first, piece);
  }
  if (rows > 0) visit(first, rows);
}

// y's rows g = x's rows g times matrix g: (in, out) each.
void MultiplyGroups(const Tensor& x, std::span<const int64_t> rows,
                    const std::vector<Tensor>& matrices, const Tensor& y) {
  int64_t begin = 0;
  for (size_t g = 0; g < rows.size(); ++g) {
    ForPieces(x.device(), begin, rows[g], [&](int64_t first, int64_t count) {
      Tensor part = y.narrow(0, first, count);
      MatMul(x.narrow(0, first, count), matrices[g], part);
    });
    begin += rows[g];
  }
}

// weight_grad (out, in) += grad_y^T x over equally many rows.
void AddWeightGradient(const Tensor& grad_y, const Tensor& x, Tensor& weight_grad) {
  ForPieces(x.device(), 0, x.size(0), [&](int64_t first, int64_t count) {
    Tensor left = grad_y.narrow(0, first, count), right = x.narrow(0, first, count);
    if (count < kSmallestPiece && x.is_cpu()) {
      const int64_t missing = kSmallestPiece - count;
      left = at::constant_pad_nd(left, {0, 0, 0, missing});
      right = at::constant_pad_nd(right, {0, 0, 0, missing});
    }
    MatMul(left.t(), right, weight_grad, {.accumulate = true, .bias = {}});
  });
}

struct GroupedLinearFunction : torch::autograd::Function<GroupedLinearFunction> {
  // Weights and gradient buffers are kept past autograd's version check, as Linear keeps them.
  static Tensor forward(ExpertContext* ctx, const Tensor& x, const Tensor& anchor,
                        const std::vector<int64_t>& rows, const std::vector<Parameter>& weights) {
    std::vector<Tensor> values, grads, matrices;
    for (const Parameter& weight : weights) {
      values.push_back(weight.value.detach());
      grads.push_back(weight.grad);
      matrices.push_back(values.back().t());
    }
    const Tensor y = at::empty({x.size(0), values[0].size(0)}, x.options());
    MultiplyGroups(x, rows, matrices, y);
    ctx->save_for_backward({x});
    ctx->saved_data["rows"] = rows;
    ctx->saved_data["values"] = values;
    ctx->saved_data["grads"] = grads;
    return y;
  }

  static ExpertTensors backward(ExpertContext* ctx, ExpertTensors gradients) {
    const Tensor x = ctx->get_saved_variables()[0];
    const std::vector<int64_t> rows = ctx->saved_data["rows"].toIntVector();
    const Tensor grad_y = gradients[0].contiguous();
    const std::vector<Tensor> grads = ctx->saved_data["grads"].toTensorVector();
    int64_t first = 0;
    for (size_t g = 0; g < grads.size(); first += rows[g], ++g) {
      if (rows[g] == 0 || !grads[g].defined()) continue;
      DoWeightGradient([part = grad_y.narrow(0, first, rows[g]), x = x.narrow(0, first, rows[g]),
                        grad = grads[g]]() mutable { AddWeightGradient(part, x, grad); });
    }
    Tensor grad_x;
    if (ctx->needs_input_grad(0)) {
      grad_x = at::empty(x.sizes(), grad_y.options());
      MultiplyGroups(grad_y, rows, ctx->saved_data["values"].toTensorVector(), grad_x);
    }
    return {grad_x, Tensor(), Tensor(), Tensor()};
  }
};

// (R, C) in the type of sums: the rows of each token added up, each times factor_RK (undefined: 1).
Tensor SumOfRows(const Tensor& rows_SC, const Tensor& row_RK, const Tensor& factor_RK) {
  const Tensor sum = at::zeros({row_RK.size(0), rows_SC.size(1)},
                               rows_SC.options().dtype(SumDtype(rows_SC.scalar_type())));
  for (int64_t j = 0; j < row_RK.size(1); ++j) {
    const Tensor rows = rows_SC.index_select(0, row_RK.select(1, j)).to(sum.scalar_type());
    if (factor_RK.defined())
      sum.addcmul_(rows, factor_RK.select(1, j).unsqueeze(1));
    else
      sum.add_(rows);
  }
  return sum;
}

struct TokensToRowsFunction : torch::autograd::Function<TokensToRowsFunction> {
  static Tensor forward(ExpertContext* ctx, const Tensor& x, const ExpertRows& rows) {
    ctx->saved_data["row"] = rows.row_RK;
    ctx->saved_data["taken"] = rows.taken_RK;
    return x.index_select(0, at::floor_divide(rows.choice_S, rows.row_RK.size(1)));
  }
  static ExpertTensors backward(ExpertContext* ctx, ExpertTensors gradients) {
    const Tensor sum = SumOfRows(gradients[0], ctx->saved_data["row"].toTensor(),
                                 ctx->saved_data["taken"].toTensor());
    return {sum.to(gradients[0].scalar_type()), Tensor()};
  }
};

struct RowsToTokensFunction : torch::autograd::Function<RowsToTokensFunction> {
  static Tensor forward(ExpertContext* ctx, const Tensor& rows_SC, const Tensor& weights_RK,
                        const ExpertRows& rows) {
    ctx->save_for_backward({rows_SC, weights_RK});
    ctx->saved_data["choice"] = rows.choice_S;
    ctx->saved_data["row"] = rows.row_RK;
    return SumOfRows(rows_SC, rows.row_RK, weights_RK).to(rows_SC.scalar_type());
  }
  static ExpertTensors backward(ExpertContext* ctx, ExpertTensors gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &rows_SC = saved[0], &weights_RK = saved[1], &grad_RC = gradients[0];
    const Tensor choice_S = ctx->saved_data["choice"].toTensor(),
                 row_RK = ctx->saved_data["row"].toTensor();
    const int64_t k = row_RK.size(1);
    const Tensor weight_S1 = weights_RK.reshape({-1}).index_select(0, choice_S).unsqueeze(1);
    const Tensor grad_rows = (grad_RC.index_select(0, at::floor_divide(choice_S, k)) * weight_S1)
                                 .to(rows_SC.scalar_type());
    const Tensor grad_weights = at::empty_like(weights_RK);
    for (int64_t j = 0; j < k; ++j) {
      const Tensor rows = rows_SC.index_select(0, row_RK.select(1, j)).to(weights_RK.scalar_type());
      grad_weights.select(1, j).copy_((rows * grad_RC).sum(-1));
    }
    return {grad_rows, grad_weights, Tensor()};
  }
};

}  // namespace

Tensor GroupedLinear(const Tensor& x_SI, std::span<const int64_t> rows,
                     std::span<const Parameter> weights) {
  SHOAL_CHECK(!weights.empty() && rows.size() == weights.size())
      << rows.size() << " groups, " << weights.size() << " matrices";
  const auto trained = std::find_if(weights.begin(), weights.end(),
                                    [](const Parameter& weight) { return weight.grad.defined(); });
  const Tensor& anchor = trained == weights.end() ? weights[0].value : trained->value;
  return GroupedLinearFunction::apply(x_SI, anchor, std::vector<int64_t>(rows.begin(), rows.end()),
                                      std::vector<Parameter>(weights.begin(), weights.end()));
}

Tensor TokensToRows(const Tensor& x_RC, const ExpertRows& rows) {
  return TokensToRowsFunction::apply(x_RC, rows);
}

Tensor RowsToTokens(const Tensor& rows_SC, const Tensor& weights_RK, const ExpertRows& rows) {
  return RowsToTokensFunction::apply(rows_SC, weights_RK, rows);
}

}  // namespace shoal
