// Legend: R rows, C channels, V vocabulary; a chunk is a run of rows.
#include "kernels/cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
#include "core/status.h"
#include "core/trace.h"
#include "kernels/accumulate.h"
#include "kernels/device_kernels.h"
#include "kernels/fused.h"
#include "kernels/matmul.h"
#include "kernels/reference.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One chunk's logits, their gradient, and the rows they belong to; buffers are shared by all
// chunks.
class Chunk {
 public:
  Chunk(const Tensor& hidden_RC, const Tensor& weight_VC, const Tensor& targets_R,
        const CrossEntropyOptions& options)
      : hidden_(hidden_RC),
        weight_(weight_VC),
        targets_(targets_R),
        options_(options),
        rows_(std::min(options.chunk_rows > 0
                           ? options.chunk_rows
                           : CrossEntropyChunkRows(weight_VC.size(0), hidden_RC.device().type()),
                       std::max<int64_t>(hidden_RC.size(0), 1))),
        logits_(at::empty({rows_, weight_VC.size(0)},
                          hidden_RC.options().dtype(SumDtype(hidden_RC.scalar_type())))) {}

  // One chunk holds all rows.
  bool only() const { return hidden_.size(0) <= rows_; }

  // Calls body(first row, rows) for every chunk, its logits computed.
  template <class F>
  void ForEach(F&& body) {
    for (int64_t first = 0; first < hidden_.size(0); first += rows_) {
      const int64_t rows = std::min(rows_, hidden_.size(0) - first);
      Tensor logits = logits_.narrow(0, 0, rows);
      MatMul(hidden_.narrow(0, first, rows), weight_.t(), logits);
      body(first, rows);
    }
  }

  // Writes each valid row's log-probability of its target, 0 where ignored. Where `scale_R` is
  // defined, replaces the chunk's logits by their gradient (softmax - onehot) * scale, in the
  // hidden dtype.
  void Softmax(int64_t first, int64_t rows, const Tensor& logprobs_R, const Tensor& scale_R) {
    if (scale_R.defined() && !gradient_.defined()) {
      // Gradients in the logits' type take their place.
      gradient_ = hidden_.scalar_type() == logits_.scalar_type()
                      ? logits_
                      : at::empty(logits_.sizes(), hidden_.options());
    }
    if (const DeviceKernels* device = DeviceKernelsFor(hidden_))
      SoftmaxOnDevice(*device, first, rows, logprobs_R, scale_R);
    else if (IsFused(hidden_))
      SoftmaxByLoops(first, rows, logprobs_R, scale_R);
    else
      SoftmaxByOperators(first, rows, logprobs_R, scale_R);
  }

  Tensor gradient(int64_t rows) const { return gradient_.narrow(0, 0, rows); }
  Tensor logits(int64_t rows) const { return logits_.narrow(0, 0, rows); }

 private:
  void SoftmaxByLoops(int64_t first, int64_t rows, const Tensor& logprobs_R,
                      const Tensor& scale_R) {
    const int64_t vocabulary = weight_.size(0);
    float* logprobs = MutableData<float>(logprobs_R);
    const float* scale = scale_R.defined() ? Data<float>(scale_R) : nullptr;
    DispatchFused(hidden_, [&]<class T>(T) {
      ParallelFor(rows, RowGrain(vocabulary), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t target = Data<int64_t>(targets_)[first + row];
          float* logits = MutableData<float>(logits_) + row * vocabulary;
          T* gradient = scale ? MutableData<T>(gradient_) + row * vocabulary : nullptr;
          if (target == options_.ignore_index) {
            logprobs[first + row] = 0;
            if (gradient) std::fill_n(gradient, vocabulary, T{});
            continue;
          }
          const float logit = logits[target];
          logprobs[first + row] =
              logit - simd::KernelsFor<T>().softmax_gradient(logits, gradient, vocabulary, target,
                                                             scale ? scale[first + row] : 0);
        }
      });
    });
  }

  void SoftmaxOnDevice(const DeviceKernels& device, int64_t first, int64_t rows,
                       const Tensor& logprobs_R, const Tensor& scale_R) {
    const bool wanted = scale_R.defined();
    device.softmax_gradient(CallOn(hidden_),
                            {.logits = Data<float>(logits_),
                             .targets = Data<int64_t>(targets_) + first,
                             .ignore_index = options_.ignore_index,
                             .shape = {rows, weight_.size(0)},
                             .logprobs = MutableData<float>(logprobs_R) + first,
                             .gradient = wanted ? gradient_.mutable_data_ptr() : nullptr,
                             .scales = wanted ? Data<float>(scale_R) + first : nullptr});
  }

  void SoftmaxByOperators(int64_t first, int64_t rows, const Tensor& logprobs_R,
                          const Tensor& scale_R) {
    const Tensor targets_R1 = targets_.narrow(0, first, rows).unsqueeze(1);
    const Tensor ignored_R1 = targets_R1.eq(options_.ignore_index);
    const Tensor places_R1 = targets_R1.masked_fill(ignored_R1, 0);
    Tensor probabilities = at::log_softmax(logits(rows), 1);
    logprobs_R.narrow(0, first, rows)
        .copy_(probabilities.gather(1, places_R1).masked_fill_(ignored_R1, 0).squeeze(1));
    if (!scale_R.defined()) return;
    probabilities.exp_();
    probabilities.scatter_add_(1, places_R1, at::full({rows, 1}, -1, probabilities.options()));
    // By filling: what is ignored need not be finite.
    probabilities.masked_fill_(ignored_R1, 0);
    Tensor target = gradient(rows);
    at::mul_out(target, probabilities, scale_R.narrow(0, first, rows).unsqueeze(1));
  }

  const Tensor hidden_, weight_, targets_;
  const CrossEntropyOptions& options_;
  int64_t rows_;
  Tensor logits_;    // (rows, V) float32
  Tensor gradient_;  // (rows, V) of hidden's dtype
};

// What label smoothing changes of a chunk: part of each target is spread over the vocabulary.
class Smoothing {
 public:
  Smoothing(const Tensor& logits, const Tensor& targets_R, const CrossEntropyOptions& options)
      : share_(options.label_smoothing) {
    if (share_ == 0) return;
    valid_ = targets_R.ne(options.ignore_index);
    places_ = targets_R.masked_fill(valid_.logical_not(), 0).unsqueeze(1);
    target_logits_ = logits.gather(1, places_).squeeze(1);
    means_ = logits.mean(1);
  }

  // Log-probabilities of the targets become those of the smoothed ones.
  void Smooth(Tensor logprobs_R) const {
    if (share_ == 0) return;
    const Tensor mean_logprobs = means_ - (target_logits_ - logprobs_R);
    logprobs_R.mul_(1 - share_).add_(mean_logprobs * valid_, share_);
  }

  // The gradient of logits, each row scaled by `scale`.
  void SmoothGradient(Tensor gradient_RV, double scale) const {
    if (share_ == 0) return;
    const Tensor moved = valid_.unsqueeze(1).to(gradient_RV.scalar_type()).mul_(share_ * scale);
    gradient_RV.sub_(moved / gradient_RV.size(1));
    gradient_RV.scatter_add_(1, places_, moved);
  }

 private:
  double share_;
  Tensor valid_, places_, target_logits_, means_;
};

// Adds what a chunk of logit gradients gives to the hidden states' and the weight's gradients,
// where wanted.
void AddChunkGradients(const Tensor& dlogits, const Tensor& hidden, const Tensor& weight,
                       Tensor& grad_hidden, Tensor& grad_weight, int64_t first, bool accumulate) {
  const int64_t rows = dlogits.size(0);
  if (grad_hidden.defined()) {
    Tensor target = grad_hidden.narrow(0, first, rows);
    MatMul(dlogits, weight, target);
  }
  if (grad_weight.defined()) {
    MatMul(dlogits.t(), hidden.narrow(0, first, rows), grad_weight,
           {.accumulate = accumulate, .bias = {}});
  }
}

// The sum of -logprobs / denominator, added up in float64.
Tensor SumOfLosses(const Tensor& logprobs_R, double denominator) {
  if (!logprobs_R.is_cpu())
    return logprobs_R.sum(at::kDouble).neg_().div_(denominator).to(logprobs_R.scalar_type());
  double total = 0;
  for (int64_t row = 0; row < logprobs_R.size(0); ++row) total -= Data<float>(logprobs_R)[row];
  return at::scalar_tensor(total / denominator, at::kFloat);
}

struct LinearCrossEntropyFunction : torch::autograd::Function<LinearCrossEntropyFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden_in, const Tensor& anchor,
                        const Parameter& weight, const Tensor& targets_R,
                        const CrossEntropyOptions& options, bool want_grad_hidden) {
    const Tensor hidden = hidden_in.contiguous(), weight_VC = weight.value.detach();
    const auto sums = hidden.options().dtype(SumDtype(hidden.scalar_type()));
    const Tensor logprobs_R = at::empty({hidden.size(0)}, sums);
    Tensor grad_hidden = want_grad_hidden ? at::empty_like(hidden) : Tensor();
    Chunk chunk(hidden, weight_VC, targets_R, options);
    // Several chunks are not added up in bfloat16.
    const bool direct = options.unit_gradient && weight.grad.defined() &&
                        (weight.grad.scalar_type() == logprobs_R.scalar_type() || chunk.only());
    Tensor grad_weight = !weight.grad.defined() ? Tensor()
                         : direct               ? weight.grad
                                                : at::empty(weight.grad.sizes(), sums);
    if (grad_weight.defined() && !direct && hidden.size(0) == 0) grad_weight.zero_();
    const bool want_gradient = grad_hidden.defined() || grad_weight.defined();
    const Tensor scale_R =
        want_gradient ? at::full({hidden.size(0)}, 1.0 / options.denominator, sums) : Tensor();
    chunk.ForEach([&](int64_t first, int64_t rows) {
      const Smoothing smoothing(chunk.logits(rows), targets_R.narrow(0, first, rows), options);
      chunk.Softmax(first, rows, logprobs_R, scale_R);
      smoothing.Smooth(logprobs_R.narrow(0, first, rows));
      if (!want_gradient) return;
      smoothing.SmoothGradient(chunk.gradient(rows), 1.0 / options.denominator);
      AddChunkGradients(chunk.gradient(rows), hidden, weight_VC, grad_hidden, grad_weight, first,
                        direct || first > 0);
    });
    ctx->saved_data["grad_hidden"] = grad_hidden;
    ctx->saved_data["product"] = direct ? Tensor() : grad_weight;
    ctx->saved_data["grad"] = weight.grad;
    ctx->saved_data["direct"] = direct;
    ctx->saved_data["unit_gradient"] = options.unit_gradient;
    return SumOfLosses(logprobs_R, options.denominator);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy backward");
    // On another device to look at it were to wait for that.
    const bool looks = grads[0].is_cpu(), promised = ctx->saved_data["unit_gradient"].toBool();
    const double factor = looks ? grads[0].item<double>() : 1;
    TORCH_CHECK(factor == 1 || !ctx->saved_data["direct"].toBool(),
                "LinearCrossEntropy: unit_gradient was promised, the loss's gradient is ", factor);
    const auto scale = [&](Tensor& x) {
      if (!looks && !promised)
        x.mul_(grads[0]);
      else if (factor != 1)
        x.mul_(factor);
    };
    Tensor grad_hidden = ctx->saved_data["grad_hidden"].toTensor();
    if (grad_hidden.defined()) scale(grad_hidden);
    if (Tensor product = ctx->saved_data["product"].toTensor(); product.defined()) {
      scale(product);
      Accumulate(product, ctx->saved_data["grad"].toTensor());
    }
    ctx->saved_data.erase("product");
    ctx->saved_data.erase("grad_hidden");
    return {grad_hidden, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct LinearLogprobsFunction : torch::autograd::Function<LinearLogprobsFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden_in, const Tensor& anchor,
                        const Parameter& weight, const Tensor& targets_R,
                        const CrossEntropyOptions& options) {
    const Tensor hidden = hidden_in.contiguous();
    const Tensor logprobs_R =
        at::empty({hidden.size(0)}, hidden.options().dtype(SumDtype(hidden.scalar_type())));
    Chunk chunk(hidden, weight.value.detach(), targets_R, options);
    chunk.ForEach(
        [&](int64_t first, int64_t rows) { chunk.Softmax(first, rows, logprobs_R, Tensor()); });
    ctx->save_for_backward({hidden, targets_R});
    ctx->saved_data["weight"] = weight.value.detach();
    ctx->saved_data["grad"] = weight.grad;
    ctx->saved_data["ignore_index"] = options.ignore_index;
    ctx->saved_data["chunk_rows"] = options.chunk_rows;
    return logprobs_R;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy backward");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor hidden = saved[0], targets_R = saved[1], scale_R = grads[0].neg().contiguous();
    const Tensor weight = ctx->saved_data["weight"].toTensor();
    Tensor grad_weight = ctx->saved_data["grad"].toTensor();
    Tensor grad_hidden = ctx->needs_input_grad(0) ? at::empty_like(hidden) : Tensor();
    CrossEntropyOptions options;
    options.ignore_index = ctx->saved_data["ignore_index"].toInt();
    options.chunk_rows = ctx->saved_data["chunk_rows"].toInt();
    const Tensor logprobs_R = at::empty_like(scale_R);
    Chunk chunk(hidden, weight, targets_R, options);
    chunk.ForEach([&](int64_t first, int64_t rows) {
      chunk.Softmax(first, rows, logprobs_R, scale_R);
      AddChunkGradients(chunk.gradient(rows), hidden, weight, grad_hidden, grad_weight, first,
                        true);
    });
    return {grad_hidden, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Targets as the loops read them; every one an index of the vocabulary or ignored. Those on another
// device are not looked at, which would wait for it; its own gather stops at one outside.
Tensor CheckedTargets(const char* what, const Tensor& hidden_RC, const Parameter& weight,
                      const Tensor& targets_R, const CrossEntropyOptions& options) {
  SHOAL_CHECK(hidden_RC.dim() == 2 && weight.value.dim() == 2 &&
              weight.value.size(1) == hidden_RC.size(1) && targets_R.numel() == hidden_RC.size(0) &&
              weight.value.scalar_type() == hidden_RC.scalar_type())
      << what << ": hidden " << hidden_RC.sizes() << ", weight " << weight.value.sizes()
      << ", targets " << targets_R.sizes();
  const Tensor targets = targets_R.to(at::kLong).contiguous().view({-1});
  for (int64_t i = 0; targets.is_cpu() && i < targets.numel(); ++i) {
    const int64_t target = Data<int64_t>(targets)[i];
    SHOAL_CHECK(target == options.ignore_index || (0 <= target && target < weight.value.size(0)))
        << what << ": target " << target << " in row " << i << ", the vocabulary holds "
        << weight.value.size(0);
  }
  return targets;
}

}  // namespace

int64_t CrossEntropyChunkRows(int64_t vocabulary, at::DeviceType device) {
  constexpr int64_t kMinChunkRows = 64;
  const int64_t bytes = device == at::kCPU ? 8 << 20 : 256 << 20;
  return std::max(kMinChunkRows, bytes / (4 * std::max<int64_t>(vocabulary, 1)) / 64 * 64);
}

Tensor LinearCrossEntropy(const Tensor& hidden_RC, const Parameter& weight, const Tensor& targets_R,
                          const CrossEntropyOptions& options) {
  const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy");
  const Tensor targets =
      CheckedTargets("LinearCrossEntropy", hidden_RC, weight, targets_R, options);
  if (hidden_RC.is_cpu() && !IsFused(hidden_RC))
    return reference::LinearCrossEntropy(hidden_RC, WeightOf(weight), targets, options);
  if (!at::GradMode::is_enabled()) {
    return LinearCrossEntropyFunction::apply(hidden_RC, weight.value, Parameter{weight.value, {}},
                                             targets, options, false);
  }
  return LinearCrossEntropyFunction::apply(hidden_RC, weight.value, weight, targets, options,
                                           hidden_RC.requires_grad());
}

Tensor LinearLogprobs(const Tensor& hidden_RC, const Parameter& weight, const Tensor& targets_R,
                      const CrossEntropyOptions& options) {
  const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy");
  const Tensor targets = CheckedTargets("LinearLogprobs", hidden_RC, weight, targets_R, options);
  if (hidden_RC.is_cpu() && !IsFused(hidden_RC))
    return reference::LinearLogprobs(hidden_RC, WeightOf(weight), targets, options);
  return LinearLogprobsFunction::apply(hidden_RC, weight.value, weight, targets, options);
}

}  // namespace shoal
