// Legend: R rows, C channels.
#include "kernels/norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/status.h"
#include "core/trace.h"
#include "kernels/device_kernels.h"
#include "kernels/fused.h"
#include "kernels/reference.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Gradients of weights are summed in pieces of this many rows, then piece by piece: the same sum on
// any number of threads.
constexpr int64_t kPieceRows = 128;

// Calls body(piece, first row, rows) for every piece.
template <class F>
void ForPieces(int64_t rows, F&& body) {
  ParallelFor((rows + kPieceRows - 1) / kPieceRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      body(piece, piece * kPieceRows, std::min(kPieceRows, rows - piece * kPieceRows));
    }
  });
}

Tensor ZeroPartials(const Tensor& x) {
  const int64_t rows = NumRows(x), piece = DeviceKernelsFor(x) ? kDevicePieceRows : kPieceRows;
  return at::zeros({std::max<int64_t>(1, (rows + piece - 1) / piece), x.size(-1)},
                   x.options().dtype(at::kFloat));
}

DeviceMatrix MatrixOf(const Tensor& x) { return {NumRows(x), x.size(-1)}; }

// Memory of a tensor that may be undefined.
const void* DataOrNull(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }
template <class T>
T* MutableDataOrNull(const Tensor& x) {
  return x.defined() ? MutableData<T>(x) : nullptr;
}

void CheckWeight(const Tensor& x, const Tensor& weight, const char* what) {
  SHOAL_CHECK(x.dim() >= 1 && weight.dim() == 1 && weight.size(0) == x.size(-1))
      << what << ": input " << x.sizes() << ", weight " << weight.sizes();
}

struct RmsNormResult {
  Tensor y, sum, rstd_R, scale;  // Without a residual, sum is x
};

RmsNormResult RmsNormForward(const Tensor& x_in, const Tensor& residual_in, const Tensor& weight,
                             bool add, double epsilon) {
  const Tensor x = x_in.contiguous(), scale = weight.detach().to(x.scalar_type()).contiguous();
  const Tensor residual = add ? residual_in.contiguous() : Tensor();
  const int64_t rows = NumRows(x), columns = x.size(-1);
  Tensor sum = add ? at::empty_like(x) : x, y = at::empty_like(x),
         rstd_R = at::empty({rows}, x.options().dtype(at::kFloat));
  if (const DeviceKernels* device = DeviceKernelsFor(x)) {
    device->rms_norm(CallOn(x), MatrixOf(x), x.const_data_ptr(), DataOrNull(residual),
                     scale.const_data_ptr(), add ? sum.mutable_data_ptr() : nullptr,
                     y.mutable_data_ptr(), MutableData<float>(rstd_R), static_cast<float>(epsilon));
    return {y, sum, rstd_R, scale};
  }
  DispatchFused(x, [&]<class T>(T) {
    ParallelFor(rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
      const int64_t at = begin * columns;
      simd::KernelsFor<T>().rms_norm(Data<T>(x) + at, add ? Data<T>(residual) + at : nullptr,
                                     Data<T>(scale), add ? MutableData<T>(sum) + at : nullptr,
                                     MutableData<T>(y) + at, MutableData<float>(rstd_R) + begin,
                                     end - begin, columns, static_cast<float>(epsilon));
    });
  });
  return {y, sum, rstd_R, scale};
}

// {y, sum}.
struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& residual,
                               const Tensor& anchor, const Parameter& weight, bool add,
                               double epsilon) {
    const auto [y, sum, rstd_R, scale] = RmsNormForward(x, residual, weight.value, add, epsilon);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({sum});
    ctx->saved_data["rstd"] = rstd_R;
    ctx->saved_data["weight"] = scale;
    ctx->saved_data["grad"] = weight.grad;
    ctx->saved_data["add"] = add;
    if (add) return {y, sum};
    return {y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kNorm, "norm backward");
    const Tensor extra = grads.size() > 1 && grads[1].defined() ? grads[1].contiguous() : Tensor();
    if (!grads[0].defined()) return {extra, extra, Tensor(), Tensor(), Tensor(), Tensor()};
    const Tensor sum = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const Tensor rstd_R = ctx->saved_data["rstd"].toTensor(),
                 scale = ctx->saved_data["weight"].toTensor();
    const Tensor grad = ctx->saved_data["grad"].toTensor();
    const int64_t rows = NumRows(sum), columns = sum.size(-1);
    Tensor dx = at::empty_like(sum);
    Tensor partials = grad.defined() ? ZeroPartials(sum) : Tensor();
    if (const DeviceKernels* device = DeviceKernelsFor(sum)) {
      device->rms_norm_backward(CallOn(sum), MatrixOf(sum), sum.const_data_ptr(),
                                scale.const_data_ptr(), Data<float>(rstd_R), dy.const_data_ptr(),
                                DataOrNull(extra), dx.mutable_data_ptr(),
                                MutableDataOrNull<float>(partials));
    } else {
      DispatchFused(sum, [&]<class T>(T) {
        ForPieces(rows, [&](int64_t piece, int64_t row, int64_t count) {
          const int64_t at = row * columns;
          simd::KernelsFor<T>().rms_norm_backward(
              Data<T>(sum) + at, Data<T>(scale), Data<float>(rstd_R) + row, Data<T>(dy) + at,
              extra.defined() ? Data<T>(extra) + at : nullptr, MutableData<T>(dx) + at,
              grad.defined() ? MutableData<float>(partials) + piece * columns : nullptr, count,
              columns);
        });
      });
    }
    if (grad.defined()) AddPartials(grad, partials);
    return {dx,      ctx->saved_data["add"].toBool() ? dx : Tensor(), Tensor(), Tensor(), Tensor(),
            Tensor()};
  }
};

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& anchor,
                        const Parameter& weight, const Parameter& bias, double epsilon) {
    const Tensor x = x_in.contiguous();
    const Tensor scale = weight.value.detach().to(x.scalar_type()).contiguous();
    const Tensor shift = bias.value.detach().to(x.scalar_type()).contiguous();
    const int64_t rows = NumRows(x), columns = x.size(-1);
    Tensor y = at::empty_like(x), mean_R = at::empty({rows}, x.options().dtype(at::kFloat)),
           rstd_R = at::empty_like(mean_R);
    if (const DeviceKernels* device = DeviceKernelsFor(x)) {
      device->layer_norm(CallOn(x), MatrixOf(x), x.const_data_ptr(), scale.const_data_ptr(),
                         shift.const_data_ptr(), y.mutable_data_ptr(), MutableData<float>(mean_R),
                         MutableData<float>(rstd_R), static_cast<float>(epsilon));
    } else {
      DispatchFused(x, [&]<class T>(T) {
        ParallelFor(rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
          const int64_t at = begin * columns;
          simd::KernelsFor<T>().layer_norm(
              Data<T>(x) + at, Data<T>(scale), Data<T>(shift), MutableData<T>(y) + at,
              MutableData<float>(mean_R) + begin, MutableData<float>(rstd_R) + begin, end - begin,
              columns, static_cast<float>(epsilon));
        });
      });
    }
    ctx->save_for_backward({x});
    ctx->saved_data["mean"] = mean_R;
    ctx->saved_data["rstd"] = rstd_R;
    ctx->saved_data["weight"] = scale;
    ctx->saved_data["weight_grad"] = weight.grad;
    ctx->saved_data["bias_grad"] = bias.grad;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kNorm, "norm backward");
    const Tensor x = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const Tensor mean_R = ctx->saved_data["mean"].toTensor(),
                 rstd_R = ctx->saved_data["rstd"].toTensor();
    const Tensor scale = ctx->saved_data["weight"].toTensor();
    const Tensor weight_grad = ctx->saved_data["weight_grad"].toTensor();
    const Tensor bias_grad = ctx->saved_data["bias_grad"].toTensor();
    const int64_t rows = NumRows(x), columns = x.size(-1);
    Tensor dx = at::empty_like(x);
    Tensor weight_partials = weight_grad.defined() ? ZeroPartials(x) : Tensor();
    Tensor bias_partials = bias_grad.defined() ? ZeroPartials(x) : Tensor();
    if (const DeviceKernels* device = DeviceKernelsFor(x)) {
      device->layer_norm_backward(
          CallOn(x), MatrixOf(x), x.const_data_ptr(), scale.const_data_ptr(), Data<float>(mean_R),
          Data<float>(rstd_R), dy.const_data_ptr(), dx.mutable_data_ptr(),
          MutableDataOrNull<float>(weight_partials), MutableDataOrNull<float>(bias_partials));
    } else {
      DispatchFused(x, [&]<class T>(T) {
        ForPieces(rows, [&](int64_t piece, int64_t row, int64_t count) {
          const int64_t at = row * columns, slot = piece * columns;
          simd::KernelsFor<T>().layer_norm_backward(
              Data<T>(x) + at, Data<T>(scale), Data<float>(mean_R) + row, Data<float>(rstd_R) + row,
              Data<T>(dy) + at, MutableData<T>(dx) + at,
              weight_grad.defined() ? MutableData<float>(weight_partials) + slot : nullptr,
              bias_grad.defined() ? MutableData<float>(bias_partials) + slot : nullptr, count,
              columns);
        });
      });
    }
    if (weight_grad.defined()) AddPartials(weight_grad, weight_partials);
    if (bias_grad.defined()) AddPartials(bias_grad, bias_partials);
    return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor RmsNorm(const Tensor& x, const Parameter& weight, double epsilon) {
  const TraceSpan span(TraceKind::kNorm, "norm");
  CheckWeight(x, weight.value, "RmsNorm");
  if (!HasKernels(x)) return reference::RmsNorm(x, WeightOf(weight), epsilon);
  if (!at::GradMode::is_enabled()) return RmsNormForward(x, x, weight.value, false, epsilon).y;
  return RmsNormFunction::apply(x, weight.value, weight.value, weight, false, epsilon)[0];
}

std::pair<Tensor, Tensor> AddRmsNorm(const Tensor& x, const Tensor& residual,
                                     const Parameter& weight, double epsilon) {
  const TraceSpan span(TraceKind::kNorm, "norm");
  CheckWeight(x, weight.value, "AddRmsNorm");
  SHOAL_CHECK(x.sizes() == residual.sizes() && x.scalar_type() == residual.scalar_type())
      << "AddRmsNorm: x " << x.sizes() << ", residual " << residual.sizes();
  if (!HasKernels(x)) {
    Tensor sum = x + residual;
    return {reference::RmsNorm(sum, WeightOf(weight), epsilon), sum};
  }
  if (!at::GradMode::is_enabled()) {
    const RmsNormResult result = RmsNormForward(x, residual, weight.value, true, epsilon);
    return {result.y, result.sum};
  }
  variable_list out = RmsNormFunction::apply(x, residual, weight.value, weight, true, epsilon);
  return {out[0], out[1]};
}

Tensor LayerNorm(const Tensor& x, const Parameter& weight, const Parameter& bias, double epsilon) {
  const TraceSpan span(TraceKind::kNorm, "norm");
  CheckWeight(x, weight.value, "LayerNorm");
  CheckWeight(x, bias.value, "LayerNorm");
  if (!HasKernels(x)) return reference::LayerNorm(x, WeightOf(weight), WeightOf(bias), epsilon);
  const Tensor& anchor = weight.grad.defined() ? weight.value : bias.value;
  return LayerNormFunction::apply(x, anchor, weight, bias, epsilon);
}

}  // namespace shoal
