// The fused kernels of a device, behind plain pointers into its memory: what kernels/cuda/*.cu
// implement. Nothing of libtorch is needed here, so that nvcc compiles them in seconds.
//
// A call works over whole tensors and is queued on a stream: it returns before the work is done.
// Matrices are row-major and dense where no stride is given; strides count elements. Arithmetic is
// float32, results are rounded once, and every sum has an order that depends on shapes alone: the
// same bits on every call.
#pragma once

#include <stdint.h>

#include "kernels/simd/kernel_table.h"

namespace shoal {

enum class ElementType { kFloat32, kBFloat16, kFloat16 };

// What every call says first.
struct DeviceCall {
  ElementType type;  // Of the `void*` operands
  void* stream;      // The device's own handle; see StreamOf
};

// Gradients of a norm's weights are summed in pieces of this many rows, then piece by piece.
inline constexpr int64_t kDevicePieceRows = 32;
constexpr int64_t DevicePieces(int64_t rows) {
  return (rows + kDevicePieceRows - 1) / kDevicePieceRows;
}

struct DeviceMatrix {
  int64_t rows, columns;
};

struct LionScalars {
  float keep;  // 1 - lr * weight_decay
  float learning_rate, beta1, beta2, grad_scale;
};

// Float32 weights and moments of n elements, gradients of the call's type. `copy` (or null)
// receives the rounded weights.
struct DeviceStep {
  int64_t n;
  float* weights;
  const void* gradients;
  float* moment1;  // SGD's and Lion's momentum; null for SGD without
  float* moment2;  // AdamW's alone
  void* copy;
  ElementType copy_type;
};

// Elements that sum_of_squares adds up at a time, each block in a fixed order, and then its sums
// likewise.
inline constexpr int64_t kDeviceSumBlock = 4096;
// float64 numbers of scratch memory that sum_of_squares takes.
constexpr int64_t DeviceSumScratch(int64_t n) {
  int64_t total = 0;
  do {
    n = (n + kDeviceSumBlock - 1) / kDeviceSumBlock;
    total += n;
  } while (n > 1);
  return total > 0 ? total : 1;
}

// x, y: (batch, length, heads, 2 * half), y dense. Token (b, t) is turned by the angles of
// positions[b * length + t]; a position outside [0, num_positions) makes its token NaN.
struct DeviceRotary {
  const void* x;
  int64_t batch_stride, token_stride, head_stride;  // Of x, whose rows are dense
  void* y;
  int64_t batch, length, heads, half;
  const int64_t* positions;
  int64_t num_positions;
  const float *cos, *sin;  // (num_positions, half)
  float direction;         // -1: the inverse
};

// Rows r of x and y: what stays at (places[r], column) of the stream keys[r] is multiplied by
// scale, what ThreefryWord puts below the threshold becomes zero.
struct DeviceDropout {
  const void* x;
  void* y;
  DeviceMatrix shape;
  const int64_t *keys, *places;  // (rows)
  uint32_t threshold;
  float scale;
};

// logits: (rows, columns) float32, targets: (rows) in [0, columns) or `ignore_index`.
//   logprobs[r] = log softmax(logits[r])[targets[r]], 0 where ignored
//   gradient[r] = (softmax(logits[r]) - onehot(targets[r])) * scales[r], 0 where ignored
// A target outside the vocabulary makes its row NaN.
struct DeviceSoftmax {
  const float* logits;
  const int64_t* targets;
  int64_t ignore_index;
  DeviceMatrix shape;
  float* logprobs;
  void* gradient;       // Or null; may be the logits' own memory (float32)
  const float* scales;  // (rows), or null as the gradient
};

// Where rows of a (B, T, N, H) tensor lie; those of one head are dense.
struct DeviceHeadStrides {
  int64_t batch, token, head;
};

inline constexpr int64_t kDeviceMaxHeadDim = 256;

// Causal attention of a run of queries to a run of keys; see AttentionPiece in attention.h.
struct DeviceAttention {
  int64_t batch, queries, keys, heads, key_heads, head_dim;  // head_dim <= kDeviceMaxHeadDim
  int64_t query_place, key_place;
  const int32_t* starts;  // (batch, queries), rows starts_stride apart, non-decreasing; null: 0
  int64_t starts_stride;
  float scale;
  const void *q, *k, *v;
  DeviceHeadStrides q_strides, k_strides, v_strides;
  void* out;  // Read by the backward pass
  DeviceHeadStrides out_strides;
  // Base-2 log of the sum of the exponentiated scores, -inf where no key is seen. (batch, heads,
  // queries), queries dense.
  float* lse;
  int64_t lse_batch_stride, lse_head_stride;
  // As out, or null: these are all keys. Else the forward pass goes on from what `running` and lse
  // hold and leaves the same there, `out` being `running` rounded; it may be `out` itself.
  float* running;
  DeviceHeadStrides running_strides;
  // (batch) streams, null: no dropout. Head n's stream is SubStream(keys[b], first_head + n).
  const int64_t* dropout_keys;
  int64_t first_head;
  uint32_t threshold;
  float dropout_scale;
};

struct DeviceAttentionGradients {
  const void* grad_out;
  DeviceHeadStrides grad_out_strides;
  void *grad_q, *grad_k, *grad_v;  // Of the call's type, or float32 if `sums`
  DeviceHeadStrides grad_q_strides, grad_k_strides, grad_v_strides;
  bool sums;      // Added to, not written
  float* deltas;  // (batch, heads, queries) scratch
};

// New tokens of sequences whose keys and values lie in blocks of places (paged_attention.h), a row
// each. head_dim <= kDeviceMaxHeadDim; blocks begin at multiples of 16 bytes where head_dim is one.
struct DevicePages {
  int64_t rows, key_heads, head_dim, block_places;
  const int64_t* places;             // (rows): of each row's token in its sequence
  const int64_t* tables;             // (rows): where in `blocks` those of its sequence begin
  void* const* blocks;               // Addresses of (..., key_heads, block_places, head_dim)
  int64_t key_offset, value_offset;  // Of the layer in a block, in elements
};

// Places that are attended to in one piece. A row that sees several has their results merged.
inline constexpr int64_t kDevicePagedPiece = 256;

struct DevicePagedAttention {
  DevicePages pages;
  int64_t heads;
  float scale;
  const void* q;  // (rows, heads, head_dim), rows q_stride apart
  int64_t q_stride;
  void* out;        // The same, dense
  int64_t pieces;   // Of the row that sees the most places
  float* partials;  // (rows, heads, pieces, head_dim + 2) scratch; null if pieces is 1
};

// Blocks of parallel/quantized_blocks.h, whose layout `packed` has, and of optim/adamw_8bit.h.
inline constexpr int64_t kDeviceQuantizedBlock = 256;

// Elements [begin, begin + n) of master weights held as parallel/split_bits.h says.
struct DeviceMasters {
  int64_t begin, n;
  uint32_t* bits;           // (n) of the float32 masters
  const uint16_t* rounded;  // (n) of their bfloat16 roundings
  uint16_t* low;            // Of all elements
  uint32_t* signs;          // Likewise, element i's in bit i % 32 of word i / 32
};

// Elements [first, first + n) of a weight whose moment k (0: first, 1: second) of element i is
// scales[k][i / kDeviceQuantizedBlock] * numbers[k][codes[k][i - first]].
struct DeviceAdamW8Bit {
  int64_t first, n;
  float* weights;         // (n)
  const void* gradients;  // (n) of the call's type
  void* copy;             // (n) or null: receives the rounded weights
  ElementType copy_type;
  uint8_t* codes[2];       // (n)
  const float* scales[2];  // Of the whole weight, one a block
  float* largest[2];       // Likewise
  const float*
      numbers;  // (2, 256), each row ascending; then (2, 256) their middles, the last unused
};

struct DeviceKernels {
  // The current stream of a device of this type.
  void* (*current_stream)(int device_index);
  // Host memory that copies of the device then reach by themselves, until it is unlocked. False:
  // the system does not give it.
  bool (*lock_pages)(void* address, int64_t bytes);
  void (*unlock_pages)(void* address);

  // sum = x + residual where residual is not null, else sum = x (and `sum` is not written).
  // y = round(sum * rstd) * weight, rstd = 1 / sqrt(mean(sum^2) + epsilon), one a row.
  void (*rms_norm)(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* residual,
                   const void* weight, void* sum, void* y, float* rstd, float epsilon);
  // dx = rstd (dy w - n mean(dy w n)) (+ extra where not null), n = x rstd. grad_weight: null, or
  // (DevicePieces(rows), columns) written with each piece's sum of dy n.
  void (*rms_norm_backward)(const DeviceCall& call, DeviceMatrix shape, const void* x,
                            const void* weight, const float* rstd, const void* dy,
                            const void* extra, void* dx, float* grad_weight);
  void (*layer_norm)(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* weight,
                     const void* bias, void* y, float* mean, float* rstd, float epsilon);
  // grad_weight and grad_bias as rms_norm_backward's.
  void (*layer_norm_backward)(const DeviceCall& call, DeviceMatrix shape, const void* x,
                              const void* weight, const float* mean, const float* rstd,
                              const void* dy, void* dx, float* grad_weight, float* grad_bias);

  // y = silu(gate) * up, dense.
  void (*swiglu)(const DeviceCall& call, DeviceMatrix shape, const void* gate, int64_t gate_stride,
                 const void* up, int64_t up_stride, void* y);
  void (*swiglu_backward)(const DeviceCall& call, DeviceMatrix shape, const void* gate,
                          int64_t gate_stride, const void* up, int64_t up_stride, const void* dy,
                          void* dgate, int64_t dgate_stride, void* dup, int64_t dup_stride);
  void (*gelu)(const DeviceCall& call, const void* x, void* y, int64_t n, bool tanh);
  void (*gelu_backward)(const DeviceCall& call, const void* x, const void* dy, void* dx, int64_t n,
                        bool tanh);
  void (*rotary)(const DeviceCall& call, const DeviceRotary& rotary);
  void (*dropout)(const DeviceCall& call, const DeviceDropout& dropout);

  void (*adamw)(const DeviceCall& call, const DeviceStep& step, const simd::AdamWScalars& scalars);
  void (*sgd)(const DeviceCall& call, const DeviceStep& step, const simd::SgdScalars& scalars);
  void (*lion)(const DeviceCall& call, const DeviceStep& step, const LionScalars& scalars);
  // total = sum of the squares of x's n elements. scratch: (DeviceSumScratch(n)).
  void (*sum_of_squares)(const DeviceCall& call, const void* x, int64_t n, double* scratch,
                         double* total);

  void (*softmax_gradient)(const DeviceCall& call, const DeviceSoftmax& softmax);

  void (*attention)(const DeviceCall& call, const DeviceAttention& attention);
  // Of attention's out and lse over all keys.
  void (*attention_backward)(const DeviceCall& call, const DeviceAttention& attention,
                             const DeviceAttentionGradients& gradients);

  // Quantize and SumQuantized of parallel/quantized_blocks.h, in the host's arithmetic.
  void (*quantize)(const DeviceCall& call, const void* values, int64_t n, uint8_t* packed);
  void (*sum_quantized)(const DeviceCall& call, const uint8_t* packed, int count, int64_t n,
                        void* values);
  // bits := what the others say; low and signs := what `rounded` does not say of the bits.
  void (*join_masters)(const DeviceCall& call, const DeviceMasters& masters);
  void (*split_masters)(const DeviceCall& call, const DeviceMasters& masters);
  // Updates the weights, and raises `largest` to the magnitudes of the new moments.
  void (*adamw_8bit)(const DeviceCall& call, const DeviceAdamW8Bit& step,
                     const simd::AdamWScalars& scalars);
  // Then: codes := those of the new moments, which it computes from the old ones and the gradients
  // once more, with `largest` as their scales.
  void (*adamw_8bit_codes)(const DeviceCall& call, const DeviceAdamW8Bit& step,
                           const simd::AdamWScalars& scalars);

  // Writes k and v (rows, key_heads, head_dim), rows so far apart, to the rows' places.
  void (*append_to_pages)(const DeviceCall& call, const DevicePages& pages, const void* k,
                          int64_t k_stride, const void* v, int64_t v_stride);
  // Of each row's queries to its sequence's places up to its own. What a row gets depends on its
  // own sequence alone.
  void (*paged_attention)(const DeviceCall& call, const DevicePagedAttention& attention);
};

}  // namespace shoal
