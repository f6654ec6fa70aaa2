// The language-model head: product with the vocabulary matrix and cross entropy together, in chunks
// of rows, so that the (B*T, V) logits never exist.
#pragma once

#include "core/parameter.h"

namespace shoal {

struct CrossEntropyOptions {
  double denominator = 1.0;     // The sum of losses is divided by this
  int64_t ignore_index = -100;  // Rows with this target count nothing
  int64_t chunk_rows = 0;       // 0: chosen so that a chunk's logits stay within a few MB
  // LinearCrossEntropy only: this share of each row's target is spread evenly over the vocabulary
  // (Szegedy et al. 2016), so the row's loss is (1 - s) (-logprob of the target) + s
  // mean(-logprob).
  double label_smoothing = 0.0;
  // LinearCrossEntropy only: promises that backward() will be called once with gradient 1 and that
  // weight.grad may be added to from the forward pass on. dL/dW then goes straight there, without a
  // (V, C) float32 buffer in between (bfloat16 gradients: if the rows are one chunk). On the CPU a
  // broken promise throws; elsewhere the gradient is not looked at, which would wait for the
  // device.
  bool unit_gradient = false;
};

// Rows of a chunk where the caller leaves them open: its logits stay within 8 MB, a share of the
// last-level cache, unless that were too few rows for a product; on other devices within 256 MB.
int64_t CrossEntropyChunkRows(int64_t vocabulary, at::DeviceType device = at::kCPU);

// hidden: (R, C), weight: (V, C), targets: (R) int64. Returns () float32 (float64 for float64
// inputs): sum over valid rows of logsumexp(hidden W^T) - logit of the target, / denominator. The
// gradient is computed in the forward pass (chunk by chunk, as in Liger-Kernel) when gradients are
// enabled; backward scales and hands it out, and adds dL/dW to weight.grad. It runs once a forward
// pass. Memory: a chunk's logits, and (V, C) float32 unless options.unit_gradient.
Tensor LinearCrossEntropy(const Tensor& hidden_RC, const Parameter& weight, const Tensor& targets_R,
                          const CrossEntropyOptions& options);

// log softmax(hidden W^T)[target] per row, 0 where the target is ignored. (R) float32 (float64 for
// float64). Differentiable; backward recomputes the chunk's logits.
Tensor LinearLogprobs(const Tensor& hidden_RC, const Parameter& weight, const Tensor& targets_R,
                      const CrossEntropyOptions& options);

}  // namespace shoal
