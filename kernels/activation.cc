// Legend: R rows, F features.
#include "kernels/activation.h"

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

// A matrix whose rows may lie apart: two halves of one product, or tensors of their own.
template <class T>
struct StridedRows {
  T* data;
  int64_t stride;
  T* at(int64_t row) const { return data + row * stride; }
};

template <class T>
void SwiGluForward(StridedRows<const T> gate, StridedRows<const T> up, T* y, int64_t rows,
                   int64_t columns) {
  ParallelFor(rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
    simd::KernelsFor<T>().swiglu(gate.at(begin), gate.stride, up.at(begin), up.stride,
                                 y + begin * columns, end - begin, columns);
  });
}

template <class T>
void SwiGluBackward(StridedRows<const T> gate, StridedRows<const T> up, const T* dy,
                    StridedRows<T> dgate, StridedRows<T> dup, int64_t rows, int64_t columns) {
  ParallelFor(rows, RowGrain(columns), [&](int64_t begin, int64_t end) {
    simd::KernelsFor<T>().swiglu_backward(gate.at(begin), gate.stride, up.at(begin), up.stride,
                                          dy + begin * columns, dgate.at(begin), dgate.stride,
                                          dup.at(begin), dup.stride, end - begin, columns);
  });
}

// x with a known distance between rows: x itself where it is a matrix or a run of a matrix's
// columns (split products come so), else a copy.
Tensor WithUniformRows(const Tensor& x, int64_t* stride) {
  const int64_t columns = x.size(-1);
  *stride = x.dim() > 1 ? x.stride(-2) : columns;
  bool uniform = x.stride(-1) == 1;
  for (int64_t i = x.dim() - 3; i >= 0; --i)
    uniform = uniform && x.stride(i) == x.stride(i + 1) * x.size(i + 1);
  if (uniform) return x;
  *stride = columns;
  return x.contiguous();
}

Tensor SwiGluOf(const Tensor& gate_in, const Tensor& up_in) {
  int64_t gate_stride, up_stride;
  const Tensor gate = WithUniformRows(gate_in, &gate_stride),
               up = WithUniformRows(up_in, &up_stride);
  Tensor y = at::empty(gate.sizes(), gate.options());
  if (const DeviceKernels* device = DeviceKernelsFor(gate)) {
    device->swiglu(CallOn(gate), {NumRows(gate), gate.size(-1)}, gate.const_data_ptr(), gate_stride,
                   up.const_data_ptr(), up_stride, y.mutable_data_ptr());
    return y;
  }
  DispatchFused(gate, [&]<class T>(T) {
    SwiGluForward<T>({Data<T>(gate), gate_stride}, {Data<T>(up), up_stride}, MutableData<T>(y),
                     NumRows(gate), gate.size(-1));
  });
  return y;
}

struct SwiGluFunction : torch::autograd::Function<SwiGluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    ctx->save_for_backward({gate, up});
    return SwiGluOf(gate, up);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kActivation, "activation backward");
    const variable_list saved = ctx->get_saved_variables();
    int64_t gate_stride, up_stride;
    const Tensor gate = WithUniformRows(saved[0], &gate_stride),
                 up = WithUniformRows(saved[1], &up_stride);
    const Tensor dy = grads[0].contiguous();
    Tensor dgate = at::empty(gate.sizes(), gate.options()),
           dup = at::empty(up.sizes(), up.options());
    const int64_t columns = gate.size(-1);
    if (const DeviceKernels* device = DeviceKernelsFor(gate)) {
      device->swiglu_backward(CallOn(gate), {NumRows(gate), columns}, gate.const_data_ptr(),
                              gate_stride, up.const_data_ptr(), up_stride, dy.const_data_ptr(),
                              dgate.mutable_data_ptr(), columns, dup.mutable_data_ptr(), columns);
      return {dgate, dup};
    }
    DispatchFused(gate, [&]<class T>(T) {
      SwiGluBackward<T>({Data<T>(gate), gate_stride}, {Data<T>(up), up_stride}, Data<T>(dy),
                        {MutableData<T>(dgate), columns}, {MutableData<T>(dup), columns},
                        NumRows(gate), columns);
    });
    return {dgate, dup};
  }
};

struct SwiGluPackedFunction : torch::autograd::Function<SwiGluPackedFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up_in) {
    const Tensor gate_up = gate_up_in.contiguous();
    std::vector<int64_t> shape = gate_up.sizes().vec();
    const int64_t columns = shape.back() / 2;
    shape.back() = columns;
    ctx->save_for_backward({gate_up});
    if (DeviceKernelsFor(gate_up))
      return SwiGluOf(gate_up.narrow(-1, 0, columns), gate_up.narrow(-1, columns, columns));
    Tensor y = at::empty(shape, gate_up.options());
    DispatchFused(gate_up, [&]<class T>(T) {
      const T* gate = Data<T>(gate_up);
      SwiGluForward<T>({gate, 2 * columns}, {gate + columns, 2 * columns}, MutableData<T>(y),
                       NumRows(gate_up), columns);
    });
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kActivation, "activation backward");
    const Tensor gate_up = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    Tensor d = at::empty_like(gate_up);
    const int64_t columns = gate_up.size(-1) / 2;
    if (const DeviceKernels* device = DeviceKernelsFor(gate_up)) {
      const Tensor up = gate_up.narrow(-1, columns, columns), dup = d.narrow(-1, columns, columns);
      device->swiglu_backward(CallOn(gate_up), {NumRows(gate_up), columns},
                              gate_up.const_data_ptr(), 2 * columns, up.const_data_ptr(),
                              2 * columns, dy.const_data_ptr(), d.mutable_data_ptr(), 2 * columns,
                              dup.mutable_data_ptr(), 2 * columns);
      return {d};
    }
    DispatchFused(gate_up, [&]<class T>(T) {
      const T* gate = Data<T>(gate_up);
      T* dgate = MutableData<T>(d);
      SwiGluBackward<T>({gate, 2 * columns}, {gate + columns, 2 * columns}, Data<T>(dy),
                        {dgate, 2 * columns}, {dgate + columns, 2 * columns}, NumRows(gate_up),
                        columns);
    });
    return {d};
  }
};

constexpr int64_t kElementGrain = 16384;

struct GeluFunction : torch::autograd::Function<GeluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, bool tanh) {
    const Tensor x = x_in.contiguous();
    ctx->save_for_backward({x});
    ctx->saved_data["tanh"] = tanh;
    Tensor y = at::empty_like(x);
    if (const DeviceKernels* device = DeviceKernelsFor(x)) {
      device->gelu(CallOn(x), x.const_data_ptr(), y.mutable_data_ptr(), x.numel(), tanh);
      return y;
    }
    DispatchFused(x, [&]<class T>(T) {
      ParallelFor(x.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
        simd::KernelsFor<T>().gelu(Data<T>(x) + begin, MutableData<T>(y) + begin, end - begin,
                                   tanh);
      });
    });
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kActivation, "activation backward");
    const Tensor x = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const bool tanh = ctx->saved_data["tanh"].toBool();
    Tensor dx = at::empty_like(x);
    if (const DeviceKernels* device = DeviceKernelsFor(x)) {
      device->gelu_backward(CallOn(x), x.const_data_ptr(), dy.const_data_ptr(),
                            dx.mutable_data_ptr(), x.numel(), tanh);
      return {dx, Tensor()};
    }
    DispatchFused(x, [&]<class T>(T) {
      ParallelFor(x.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
        simd::KernelsFor<T>().gelu_backward(Data<T>(x) + begin, Data<T>(dy) + begin,
                                            MutableData<T>(dx) + begin, end - begin, tanh);
      });
    });
    return {dx, Tensor()};
  }
};

}  // namespace

Tensor SwiGlu(const Tensor& gate, const Tensor& up) {
  const TraceSpan span(TraceKind::kActivation, "activation");
  SHOAL_CHECK(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type())
      << "SwiGlu: gate " << gate.sizes() << ", up " << up.sizes();
  if (!HasKernels(gate)) return reference::SwiGlu(gate, up);
  if (!at::GradMode::is_enabled()) return SwiGluOf(gate, up);
  return SwiGluFunction::apply(gate, up);
}

Tensor SwiGluPacked(const Tensor& gate_up) {
  const TraceSpan span(TraceKind::kActivation, "activation");
  SHOAL_CHECK(gate_up.size(-1) % 2 == 0) << "SwiGluPacked: odd width " << gate_up.sizes();
  if (HasKernels(gate_up)) return SwiGluPackedFunction::apply(gate_up);
  const int64_t half = gate_up.size(-1) / 2;
  return reference::SwiGlu(gate_up.narrow(-1, 0, half), gate_up.narrow(-1, half, half));
}

Tensor Gelu(const Tensor& x, GeluKind kind) {
  const TraceSpan span(TraceKind::kActivation, "activation");
  if (!HasKernels(x)) return reference::Gelu(x, kind);
  return GeluFunction::apply(x, kind == GeluKind::kTanh);
}

}  // namespace shoal
