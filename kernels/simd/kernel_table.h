// The vectorised inner loops, behind plain pointers: compiled once an instruction set, picked at
// run time. All run on one thread over the rows they are given; whoever calls them cuts the work
// (kernels/*.cc).
//
// T is float, Bf16 or Fp16, results are rounded once. Matrices are row-major; `*_stride` counts
// elements between rows. Pointers need no alignment.
#pragma once

#include <stdint.h>

namespace shoal::simd {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

struct AdamWScalars {
  float decay;  // 1 - lr * weight_decay
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float step_size;                 // lr / (1 - beta1^t)
  float inverse_sqrt_correction2;  // 1 / sqrt(1 - beta2^t)
  float epsilon, grad_scale;
};

struct SgdScalars {
  float learning_rate, momentum, weight_decay, grad_scale;
  bool nesterov, first_step;
};

// Which elements dropout drops: place (a, b) where ThreefryWord(key, a, b) < threshold. What stays
// is multiplied by `scale`.
struct DropoutMask {
  uint64_t key = 0;
  uint32_t threshold = 0;  // 0: none
  float scale = 1;
};

// One head of one sequence. Row t of x begins at x + t * x_stride.
template <class T>
struct AttentionHead {
  int64_t queries, keys, head_dim;
  // Places in the sequence of the first query and of the first key; the others follow. A query sees
  // keys up to its own place.
  int64_t query_place, key_place;
  const int32_t* starts;  // (queries) first place that each query sees, non-decreasing; null: 0
  float scale;
  const T *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  T* out;  // Read by the backward pass
  int64_t out_stride;
  float* lse;  // (queries) base-2 log of the sum of the exponentiated scores; -inf for a row that
               // sees no key
  // (queries, head_dim) or null. Else these keys are not all: the forward pass goes on from what
  // earlier ones gave, `running` and lse (zeros and -inf if there were none), and leaves there what
  // all gave, `out` being `running` rounded; it may be `out` itself.
  float* running = nullptr;
  int64_t running_stride = 0;
  DropoutMask dropout = {};  // Of the probability of the key at place b for the query at place a
};

template <class T>
struct AttentionGradients {
  const T* grad_out;
  int64_t grad_out_stride;
  T *grad_q, *grad_k, *grad_v;
  int64_t grad_q_stride, grad_k_stride, grad_v_stride;
  // Where not null, gradients are added to these, which have the same strides, and not written.
  float *sum_q = nullptr, *sum_k = nullptr, *sum_v = nullptr;
};

// Queries of some tokens of one sequence, of the `group` heads that share a key head. Its keys and
// values, those of the tokens included, lie in blocks: place s is row s % block_places of block s /
// block_places, keys from element k_offset of a block on, values from v_offset on, a row having
// head_dim elements.
template <class T>
struct CachedHeads {
  const T* q;  // Query of token t and head g: q + t * q_token_stride + g * head_dim
  int64_t q_token_stride;
  T* out;  // Likewise
  int64_t out_token_stride;
  int64_t tokens, group, head_dim;
  int64_t past;  // Places before the first token: token t sees places 0 to past + t
  const void* const* blocks;
  int64_t block_places, k_offset, v_offset;
  float scale;
  float* scores;  // Scratch: (past + tokens)
};

inline constexpr int64_t kMaxFewRows = 8;

// The left side of few_rows_product.
template <class T>
struct FewRows {
  const T* rows;
  int64_t stride;
  const T* packed;
  int64_t count;  // 1 to kMaxFewRows
  int64_t depth;
};

template <class T>
struct TypedKernels {
  // sum = x + residual where residual is not null, else sum = x (and `sum` is not written).
  // y = round(sum * rstd) * weight, rstd = 1 / sqrt(mean(sum^2) + epsilon), one a row.
  void (*rms_norm)(const T* x, const T* residual, const T* weight, T* sum, T* y, float* rstd,
                   int64_t rows, int64_t columns, float epsilon);
  // dx = rstd (dy w - n mean(dy w n)) (+ extra where not null), n = x rstd; grad_weight (columns)
  // += dy n.
  void (*rms_norm_backward)(const T* x, const T* weight, const float* rstd, const T* dy,
                            const T* extra, T* dx, float* grad_weight, int64_t rows,
                            int64_t columns);
  void (*layer_norm)(const T* x, const T* weight, const T* bias, T* y, float* mean, float* rstd,
                     int64_t rows, int64_t columns, float epsilon);
  void (*layer_norm_backward)(const T* x, const T* weight, const float* mean, const float* rstd,
                              const T* dy, T* dx, float* grad_weight, float* grad_bias,
                              int64_t rows, int64_t columns);
  // One token: rotates `heads` rows of 2 * half elements by (cos, sin); direction -1 is the
  // inverse.
  void (*rotary)(const T* x, int64_t x_stride, T* y, int64_t y_stride, const float* cos,
                 const float* sin, int64_t heads, int64_t half, float direction);
  void (*swiglu)(const T* gate, int64_t gate_stride, const T* up, int64_t up_stride, T* y,
                 int64_t rows, int64_t columns);
  void (*swiglu_backward)(const T* gate, int64_t gate_stride, const T* up, int64_t up_stride,
                          const T* dy, T* dgate, int64_t dgate_stride, T* dup, int64_t dup_stride,
                          int64_t rows, int64_t columns);
  // y = x where kept, scaled; else 0. Elements (place, 0) to (place, n - 1) of the mask.
  void (*dropout)(const T* x, T* y, int64_t n, uint32_t place, const DropoutMask& mask);
  void (*gelu)(const T* x, T* y, int64_t n, bool tanh);
  void (*gelu_backward)(const T* x, const T* dy, T* dx, int64_t n, bool tanh);
  void (*accumulate_float)(const T* x, float* sum, int64_t n);  // sum += x
  void (*accumulate_bf16)(const T* x, Bf16* sum, int64_t n);
  // sums (columns) float32 += the column's sum over rows, in the order of the rows.
  void (*column_sums)(const T* x, int64_t stride, float* sums, int64_t rows, int64_t columns);
  double (*sum_of_squares)(const T* x,
                           int64_t n);  // n <= 4096; the same bits on every instruction set
  // T is the gradients' type. copy receives the rounded weights where not null; momentum may be
  // null.
  void (*adamw)(float* weights, const T* grads, float* moment1, float* moment2, Bf16* copy,
                int64_t n, const AdamWScalars& s);
  void (*sgd)(float* weights, const T* grads, float* momentum, Bf16* copy, int64_t n,
              const SgdScalars& s);
  // grad = round((softmax(logits) - onehot(target)) * scale); target < 0: no onehot. Returns the
  // log-sum-exp. grad may be the logits' own memory; where it is null nothing is written, else the
  // logits are used up.
  float (*softmax_gradient)(float* logits, T* grad, int64_t columns, int64_t target, float scale);
  // c (rows, outs) = a (rows, depth) b^T + bias, b (outs, depth); bias may be null. For decoding,
  // where reading b is what takes time. A row's bits do not depend on what other rows there are,
  // nor an element's on other outs. `packed` is what pack_few_rows made of the rows: (rows, depth)
  // elements at most, neighbours in the order in which they are wanted.
  void (*pack_few_rows)(const T* a, int64_t a_stride, T* packed, int64_t rows, int64_t depth);
  void (*few_rows_product)(const FewRows<T>& a, const T* b, int64_t b_stride, const T* bias, T* c,
                           int64_t c_stride, int64_t outs);
  void (*few_rows_product_to_float)(const FewRows<T>& a, const T* b, int64_t b_stride,
                                    const T* bias, float* c, int64_t c_stride, int64_t outs);
  // The same with b (depth, outs), b_stride between its rows; any number of rows.
  void (*few_rows_product_in_out)(const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                                  const T* bias, T* c, int64_t c_stride, int64_t rows, int64_t outs,
                                  int64_t depth);
  // Bytes of scratch memory, 64-byte aligned, for a head; then its passes. The forward pass writes
  // out and lse; the backward pass of `group` heads that share one key head writes every gradient.
  int64_t (*attention_scratch_bytes)(int64_t queries, int64_t keys, int64_t head_dim,
                                     bool backward);
  void (*attention)(const AttentionHead<T>& head, bool keys_are_packed, void* scratch);
  void (*attention_backward)(const AttentionHead<T>* heads, const AttentionGradients<T>* gradients,
                             int64_t group, void* scratch);
  void (*cached_attention)(const CachedHeads<T>& heads);
};

struct KernelTable {
  TypedKernels<float> f32;
  TypedKernels<Bf16> bf16;
  TypedKernels<Fp16> f16;
  void (*exp)(const float* x, float* y, int64_t n);
};

bool IsSupported(Isa isa);  // By this machine
const KernelTable& TableOf(Isa isa);

// The best table of this machine, unless UseIsa chose another (tests do).
const KernelTable& Kernels();
void UseIsa(Isa isa);

template <class T>
const TypedKernels<T>& KernelsFor();
template <>
inline const TypedKernels<float>& KernelsFor<float>() {
  return Kernels().f32;
}
template <>
inline const TypedKernels<Bf16>& KernelsFor<Bf16>() {
  return Kernels().bf16;
}
template <>
inline const TypedKernels<Fp16>& KernelsFor<Fp16>() {
  return Kernels().f16;
}

}  // namespace shoal::simd
