// The head over a vocabulary that tensor-parallel ranks share by rows. A row's softmax needs its
// largest logit, the sum of exponentials and the target's logit over all ranks; its gradient
// nothing more (Shoeybi et al. 2019, section 3).
//
// Legend: R rows, C channels, v this rank's part of the vocabulary; a chunk is a run of rows.
#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
#include "core/status.h"
#include "core/trace.h"
#include "kernels/accumulate.h"
#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"
#include "parallel/tensor_parallel.h"

namespace shoal {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Options = TensorParallel::VocabularyOptions;

// Walks over the rows in chunks whose logits exist one at a time.
class VocabularyChunks {
 public:
  VocabularyChunks(const TensorParallel& parallel, const Tensor& hidden_RC, const Tensor& weight_vC,
                   const Tensor& targets_R, const Options& options)
      : parallel_(parallel),
        hidden_(hidden_RC),
        weight_(weight_vC),
        targets_(targets_R),
        options_(options),
        dtype_(SumDtype(hidden_RC.scalar_type())) {
    // The same on every rank, though parts of the vocabulary may differ by one.
    const int64_t part = options.vocabulary / parallel.place().size + 1;
    rows_ = options.chunk_rows > 0 ? options.chunk_rows
                                   : CrossEntropyChunkRows(part, hidden_RC.device().type());
  }

  // Calls body(first row, rows, logprobs, probabilities): log-probabilities of the chunk's targets,
  // 0 where ignored, and this rank's part of the softmax, (rows, v), which body may overwrite.
  template <class F>
  void ForEach(F&& body) {
    for (int64_t first = 0; first < hidden_.size(0); first += rows_) {
      const int64_t rows = std::min(rows_, hidden_.size(0) - first);
      Tensor logits = at::empty({rows, weight_.size(0)}, hidden_.options().dtype(dtype_));
      MatMul(hidden_.narrow(0, first, rows), weight_.t(), logits);
      const Tensor targets = targets_.narrow(0, first, rows);
      Tensor largest = logits.size(1) > 0 ? std::get<0>(logits.max(1))
                                          : at::full({rows}, -INFINITY, logits.options());
      parallel_.MaxOverRanks(largest);
      logits.sub_(largest.unsqueeze(1));
      // Row 0: the target's logit if it is ours; row 1: the sum of exponentials; row 2, if labels
      // are smoothed: the sum of logits.
      const bool smooths = options_.label_smoothing > 0;
      Tensor sums = at::zeros({smooths ? 3 : 2, rows}, logits.options());
      if (smooths) sums[2].copy_(logits.sum(1));
      Tensor target_logits = sums[0], exponentials = sums[1];
      if (logits.size(1) > 0) {
        target_logits.copy_(logits.gather(1, Columns(targets).unsqueeze(1))
                                .squeeze(1)
                                .masked_fill_(IsElsewhere(targets), 0));
      }
      logits.exp_();
      exponentials.copy_(logits.sum(1));
      parallel_.SumOverRanks(sums);
      if (smooths) {
        target_logits.lerp_(sums[2] / static_cast<double>(options_.vocabulary),
                            options_.label_smoothing);
      }
      Tensor logprobs = target_logits - exponentials.log();
      logprobs.masked_fill_(targets == options_.ignore_index, 0);
      logits.div_(exponentials.unsqueeze(1));
      body(first, rows, logprobs, logits);
    }
  }

  // Turns a chunk's probabilities into (onehot - softmax) * scale, the gradient of sum(scale *
  // logprob); labels are smoothed where `options` says so.
  void ToGradient(int64_t first, const Tensor& scale_R, Tensor& probabilities) const {
    const Tensor targets = targets_.narrow(0, first, probabilities.size(0));
    const Tensor scale = scale_R.masked_fill(targets == options_.ignore_index, 0);
    const double share = options_.label_smoothing;
    probabilities.mul_(scale.neg().unsqueeze(1));
    if (share > 0)
      probabilities.add_((scale * (share / static_cast<double>(options_.vocabulary))).unsqueeze(1));
    if (probabilities.size(1) == 0) return;
    const Tensor own = (scale * (1 - share)).masked_fill_(IsElsewhere(targets), 0);
    probabilities.scatter_add_(1, Columns(targets).unsqueeze(1), own.unsqueeze(1));
  }

  // Adds what gradients of a chunk's logits give to those of the hidden states and the weight,
  // where wanted.
  void AddGradients(int64_t first, const Tensor& logit_gradients, Tensor& grad_hidden,
                    Tensor& grad_weight) const {
    const int64_t rows = logit_gradients.size(0);
    const Tensor dlogits = logit_gradients.to(hidden_.scalar_type());
    if (grad_hidden.defined()) {
      Tensor target = grad_hidden.narrow(0, first, rows);
      MatMul(dlogits, weight_, target);
    }
    if (grad_weight.defined()) {
      MatMul(dlogits.t(), hidden_.narrow(0, first, rows), grad_weight,
             {.accumulate = true, .bias = {}});
    }
  }

 private:
  // Whether another rank holds a row's target, or none does.
  Tensor IsElsewhere(const Tensor& targets) const {
    return at::logical_or(targets < options_.range.begin, targets >= options_.range.end);
  }
  // Where this rank holds a row's target; any place of its own where it does not.
  Tensor Columns(const Tensor& targets) const {
    return targets.clamp(options_.range.begin, options_.range.end - 1) - options_.range.begin;
  }

  const TensorParallel& parallel_;
  const Tensor hidden_, weight_, targets_;
  const Options& options_;
  const at::ScalarType dtype_;
  int64_t rows_;
};

struct Wanted {
  bool hidden = false;
  Tensor weight_grad;  // (v, C), added to; undefined: not wanted
};

// Gradients are computed in the forward pass, chunk by chunk, as by LinearCrossEntropy.
struct CrossEntropyFunction : torch::autograd::Function<CrossEntropyFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden_in, const Tensor& anchor,
                        const TensorParallel* parallel, const Wanted& wanted,
                        const Tensor& targets_R, const Options& options) {
    const Tensor hidden = hidden_in.contiguous(), weight = anchor.detach();
    const at::ScalarType dtype = SumDtype(hidden.scalar_type());
    Tensor grad_hidden = wanted.hidden ? at::empty_like(hidden) : Tensor();
    Tensor grad_weight = wanted.weight_grad.defined()
                             ? at::zeros(weight.sizes(), hidden.options().dtype(dtype))
                             : Tensor();
    Tensor total = at::zeros({}, hidden.options().dtype(dtype));
    VocabularyChunks chunks(*parallel, hidden, weight, targets_R, options);
    chunks.ForEach([&](int64_t first, int64_t rows, const Tensor& logprobs, Tensor probabilities) {
      total.sub_(logprobs.sum());
      if (!grad_hidden.defined() && !grad_weight.defined()) return;
      chunks.ToGradient(first, at::full({rows}, -1.0 / options.denominator, logprobs.options()),
                        probabilities);
      chunks.AddGradients(first, probabilities, grad_hidden, grad_weight);
    });
    ctx->saved_data["grad_hidden"] = grad_hidden;
    ctx->saved_data["product"] = grad_weight;
    ctx->saved_data["weight_grad"] = wanted.weight_grad;
    return total.div_(options.denominator);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy backward");
    const auto scale = [&](Tensor& x) {
      if (!grads[0].is_cpu())
        x.mul_(grads[0]);  // To read it were to wait for the device
      else if (const double factor = grads[0].item<double>(); factor != 1)
        x.mul_(factor);
    };
    Tensor grad_hidden = ctx->saved_data["grad_hidden"].toTensor();
    if (grad_hidden.defined()) scale(grad_hidden);
    if (Tensor product = ctx->saved_data["product"].toTensor(); product.defined()) {
      scale(product);
      Accumulate(product, ctx->saved_data["weight_grad"].toTensor());
    }
    ctx->saved_data.erase("product");
    ctx->saved_data.erase("grad_hidden");
    return {grad_hidden, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct LogprobsFunction : torch::autograd::Function<LogprobsFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden_in, const Tensor& anchor,
                        const TensorParallel* parallel, const Wanted& wanted,
                        const Tensor& targets_R, const Options& options) {
    const Tensor hidden = hidden_in.contiguous(), weight = anchor.detach();
    Tensor logprobs_R =
        at::zeros({hidden.size(0)}, hidden.options().dtype(SumDtype(hidden.scalar_type())));
    VocabularyChunks chunks(*parallel, hidden, weight, targets_R, options);
    chunks.ForEach([&](int64_t first, int64_t rows, const Tensor& logprobs, const Tensor&) {
      logprobs_R.narrow(0, first, rows).copy_(logprobs);
    });
    ctx->save_for_backward({hidden, targets_R});
    ctx->saved_data["weight"] = weight;
    ctx->saved_data["weight_grad"] = wanted.weight_grad;
    ctx->saved_data["tensor_parallel"] = reinterpret_cast<int64_t>(parallel);
    ctx->saved_data["vocabulary"] = options.vocabulary;
    ctx->saved_data["begin"] = options.range.begin;
    ctx->saved_data["end"] = options.range.end;
    ctx->saved_data["ignore_index"] = options.ignore_index;
    ctx->saved_data["chunk_rows"] = options.chunk_rows;
    return logprobs_R;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy backward");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor hidden = saved[0], targets_R = saved[1], upstream_R = grads[0].contiguous();
    const Options options{
        .vocabulary = ctx->saved_data["vocabulary"].toInt(),
        .range = {.begin = ctx->saved_data["begin"].toInt(), .end = ctx->saved_data["end"].toInt()},
        .ignore_index = ctx->saved_data["ignore_index"].toInt(),
        .chunk_rows = ctx->saved_data["chunk_rows"].toInt()};
    const auto& parallel =
        *reinterpret_cast<const TensorParallel*>(ctx->saved_data["tensor_parallel"].toInt());
    Tensor grad_hidden = ctx->needs_input_grad(0) ? at::empty_like(hidden) : Tensor();
    Tensor grad_weight = ctx->saved_data["weight_grad"].toTensor();
    VocabularyChunks chunks(parallel, hidden, ctx->saved_data["weight"].toTensor(), targets_R,
                            options);
    chunks.ForEach([&](int64_t first, int64_t rows, const Tensor&, Tensor probabilities) {
      chunks.ToGradient(first, upstream_R.narrow(0, first, rows), probabilities);
      chunks.AddGradients(first, probabilities, grad_hidden, grad_weight);
    });
    return {grad_hidden, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor TensorParallel::CrossEntropy(const Tensor& hidden_RC, const Parameter& weight_vC,
                                    const Tensor& targets_R,
                                    const VocabularyOptions& options) const {
  const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy");
  const bool grad = at::GradMode::is_enabled();
  const Wanted wanted{.hidden = grad && hidden_RC.requires_grad(),
                      .weight_grad = grad ? weight_vC.grad : Tensor()};
  return CrossEntropyFunction::apply(hidden_RC, weight_vC.value, this, wanted,
                                     targets_R.contiguous(), options);
}

Tensor TensorParallel::Logprobs(const Tensor& hidden_RC, const Parameter& weight_vC,
                                const Tensor& targets_R, const VocabularyOptions& options) const {
  const TraceSpan span(TraceKind::kCrossEntropy, "cross entropy");
  VocabularyOptions plain = options;
  plain.label_smoothing = 0;
  // In a struct: autograd takes no undefined tensor, which a frozen weight's gradient is.
  const Wanted wanted{.hidden = hidden_RC.requires_grad(), .weight_grad = weight_vC.grad};
  return LogprobsFunction::apply(hidden_RC, weight_vC.value, this, wanted, targets_R.contiguous(),
                                 plain);
}

}  // namespace shoal
