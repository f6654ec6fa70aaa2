// Every kernel written plainly in ATen operators and differentiated by autograd. These are what the
// fused kernels are tested against, and what runs where no fused kernel exists (float64, unusual
// dtypes). They take weights as plain tensors; WeightOf connects a Parameter to them.
#pragma once

#include <utility>

#include "core/parameter.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/linear.h"
#include "kernels/norm.h"
#include "kernels/optimizer_step.h"
#include "kernels/rotary.h"

namespace shoal {

// The weight's value as an autograd input whose gradient is added to parameter.grad; detached where
// parameter.grad is undefined.
Tensor WeightOf(const Parameter& parameter);

namespace reference {

Tensor Linear(const Tensor& x, const Tensor& weight, const Tensor& bias, LinearLayout layout);
Tensor RmsNorm(const Tensor& x, const Tensor& weight, double epsilon);
Tensor LayerNorm(const Tensor& x, const Tensor& weight, const Tensor& bias, double epsilon);
Tensor ApplyRotary(const Tensor& x_BTNH, const Tensor& positions_BT, const RotaryTable& table);
Tensor SwiGlu(const Tensor& gate, const Tensor& up);
Tensor Gelu(const Tensor& x, GeluKind kind);
Tensor Embedding(const Tensor& indices, const Tensor& weight);
Tensor Dropout(const Tensor& x, double rate, const Tensor& keys_R, const Tensor& places_R);
// Holds the (B, N, T, T) scores.
Tensor CausalAttention(const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                       const AttentionOptions& options);
// As of attention.h, in place; hold the (B, N, T, S) scores.
void AttendPiece(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                 const AttentionPiece& piece, AttentionSoFar& so_far);
void AttendPieceBackward(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                         const AttentionPiece& piece, const AttentionSoFar& all,
                         const Tensor& grad_out_BTNH, const AttentionSums& sums);
// Decoding: q holds the last T of S places, k and v all S. lengths: (B) int64, the valid S of each
// row (keys past it are not read); query t of row b sits at place lengths[b] - T + t. q: (B, T, N,
// H), k, v: (B, S, K, H).
Tensor CachedAttention(const Tensor& q_BTNH, const Tensor& k_BSKH, const Tensor& v_BSKH,
                       const Tensor& lengths_B, double scale);
// Hold the (R, V) logits.
Tensor LinearLogprobs(const Tensor& hidden_RC, const Tensor& weight, const Tensor& targets_R,
                      const CrossEntropyOptions& options);
Tensor LinearCrossEntropy(const Tensor& hidden_RC, const Tensor& weight, const Tensor& targets_R,
                          const CrossEntropyOptions& options);
void AdamWStep(Tensor& weights, const Tensor& grads, Tensor& moment1, Tensor& moment2,
               Tensor& compute_copy, const AdamWOptions& options);
void SgdStep(Tensor& weights, const Tensor& grads, Tensor& momentum, Tensor& compute_copy,
             const SgdOptions& options);

}  // namespace reference
}  // namespace shoal
