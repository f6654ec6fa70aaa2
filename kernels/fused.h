// Between tensors and the vectorised loops of simd/kernel_table.h.
#pragma once

#include <ATen/ATen.h>

#include "kernels/simd/kernel_table.h"

namespace shoal {

// Whether fused kernels for the CPU serve this tensor; device_kernels.h has those of other devices,
// reference.h serves the rest.
inline bool IsFused(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return x.device().is_cpu() && (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf);
}

// Calls f(float{}), f(simd::Bf16{}) or f(simd::Fp16{}), by the dtype of a tensor for which IsFused
// holds.
template <class F>
decltype(auto) DispatchFused(const at::Tensor& x, F&& f) {
  if (x.scalar_type() == at::kFloat) return f(float{});
  if (x.scalar_type() == at::kHalf) return f(simd::Fp16{});
  return f(simd::Bf16{});
}

template <class T>
const T* Data(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
T* MutableData(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Rows a thread takes at least, so that a piece of work is worth waking a thread for.
inline int64_t RowGrain(int64_t columns) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
}

// Rows of x seen as a matrix (x.numel() / columns, columns).
inline int64_t NumRows(const at::Tensor& x) { return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1); }

// grad += the sum of partials (pieces, columns) float32 over pieces, in order. grad: float32 or
// bfloat16.
inline void AddPartials(const at::Tensor& grad, const at::Tensor& partials) {
  at::Tensor total = partials.size(0) == 1 ? partials[0] : partials.sum(0);
  grad.add_(total.view(grad.sizes()));
}

}  // namespace shoal
