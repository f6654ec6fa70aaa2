// NVIDIA GPUs' table of kernels (device_kernel_table.h); each function lies in the .cu file of its
// operation.
#pragma once

#include "kernels/device_kernel_table.h"

namespace shoal::cuda {

void RmsNorm(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* residual,
             const void* weight, void* sum, void* y, float* rstd, float epsilon);
void RmsNormBackward(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* weight,
                     const float* rstd, const void* dy, const void* extra, void* dx,
                     float* grad_weight);
void LayerNorm(const DeviceCall& call, DeviceMatrix shape, const void* x, const void* weight,
               const void* bias, void* y, float* mean, float* rstd, float epsilon);
void LayerNormBackward(const DeviceCall& call, DeviceMatrix shape, const void* x,
                       const void* weight, const float* mean, const float* rstd, const void* dy,
                       void* dx, float* grad_weight, float* grad_bias);
void SwiGlu(const DeviceCall& call, DeviceMatrix shape, const void* gate, int64_t gate_stride,
            const void* up, int64_t up_stride, void* y);
void SwiGluBackward(const DeviceCall& call, DeviceMatrix shape, const void* gate,
                    int64_t gate_stride, const void* up, int64_t up_stride, const void* dy,
                    void* dgate, int64_t dgate_stride, void* dup, int64_t dup_stride);
void Gelu(const DeviceCall& call, const void* x, void* y, int64_t n, bool tanh);
void GeluBackward(const DeviceCall& call, const void* x, const void* dy, void* dx, int64_t n,
                  bool tanh);
void Rotary(const DeviceCall& call, const DeviceRotary& rotary);
void Dropout(const DeviceCall& call, const DeviceDropout& dropout);
void AdamW(const DeviceCall& call, const DeviceStep& step, const simd::AdamWScalars& scalars);
void Sgd(const DeviceCall& call, const DeviceStep& step, const simd::SgdScalars& scalars);
void Lion(const DeviceCall& call, const DeviceStep& step, const LionScalars& scalars);
void SumOfSquares(const DeviceCall& call, const void* x, int64_t n, double* scratch, double* total);
void SoftmaxGradient(const DeviceCall& call, const DeviceSoftmax& softmax);
void Attention(const DeviceCall& call, const DeviceAttention& attention);
void AttentionBackward(const DeviceCall& call, const DeviceAttention& attention,
                       const DeviceAttentionGradients& gradients);
void Quantize(const DeviceCall& call, const void* values, int64_t n, uint8_t* packed);
void SumQuantized(const DeviceCall& call, const uint8_t* packed, int count, int64_t n,
                  void* values);
void JoinMasters(const DeviceCall& call, const DeviceMasters& masters);
void SplitMasters(const DeviceCall& call, const DeviceMasters& masters);
void AdamW8Bit(const DeviceCall& call, const DeviceAdamW8Bit& step,
               const simd::AdamWScalars& scalars);
void AdamW8BitCodes(const DeviceCall& call, const DeviceAdamW8Bit& step,
                    const simd::AdamWScalars& scalars);
void AppendToPages(const DeviceCall& call, const DevicePages& pages, const void* k,
                   int64_t k_stride, const void* v, int64_t v_stride);
void PagedAttention(const DeviceCall& call, const DevicePagedAttention& attention);

// What the CUDA runtime does, not a kernel.
struct RuntimeCalls {
  void* (*current_stream)(int device_index);
  bool (*lock_pages)(void* address, int64_t bytes);
  void (*unlock_pages)(void* address);
};

inline DeviceKernels TableWith(const RuntimeCalls& runtime) {
  return {.current_stream = runtime.current_stream,
          .lock_pages = runtime.lock_pages,
          .unlock_pages = runtime.unlock_pages,
          .rms_norm = &RmsNorm,
          .rms_norm_backward = &RmsNormBackward,
          .layer_norm = &LayerNorm,
          .layer_norm_backward = &LayerNormBackward,
          .swiglu = &SwiGlu,
          .swiglu_backward = &SwiGluBackward,
          .gelu = &Gelu,
          .gelu_backward = &GeluBackward,
          .rotary = &Rotary,
          .dropout = &Dropout,
          .adamw = &AdamW,
          .sgd = &Sgd,
          .lion = &Lion,
          .sum_of_squares = &SumOfSquares,
          .softmax_gradient = &SoftmaxGradient,
          .attention = &Attention,
          .attention_backward = &AttentionBackward,
          .quantize = &Quantize,
          .sum_quantized = &SumQuantized,
          .join_masters = &JoinMasters,
          .split_masters = &SplitMasters,
          .adamw_8bit = &AdamW8Bit,
          .adamw_8bit_codes = &AdamW8BitCodes,
          .append_to_pages = &AppendToPages,
          .paged_attention = &PagedAttention};
}

// The table of CUDA's own runtime (cuda_kernels.cc).
const DeviceKernels& Kernels();

}  // namespace shoal::cuda
