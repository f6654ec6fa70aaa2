// Legend: B sequences, T tokens, N heads, H head_dim, P positions.
#include "kernels/rotary.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/dtype.h"
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

// Rotates every head of every token by its position's angles; direction -1 turns back.
Tensor Rotate(const Tensor& x_in, const Tensor& positions_BT, const Tensor& cos_PH,
              const Tensor& sin_PH, float direction) {
  const Tensor x = x_in.stride(3) == 1 ? x_in : x_in.contiguous();
  const int64_t length = x.size(1), heads = x.size(2), head_dim = x.size(3), half = head_dim / 2;
  Tensor y = at::empty(x.sizes(), x.options());
  const int64_t* positions = Data<int64_t>(positions_BT);
  if (const DeviceKernels* device = DeviceKernelsFor(x)) {
    device->rotary(CallOn(x), {.x = x.const_data_ptr(),
                               .batch_stride = x.stride(0),
                               .token_stride = x.stride(1),
                               .head_stride = x.stride(2),
                               .y = y.mutable_data_ptr(),
                               .batch = x.size(0),
                               .length = length,
                               .heads = heads,
                               .half = half,
                               .positions = positions,
                               .num_positions = cos_PH.size(0),
                               .cos = Data<float>(cos_PH),
                               .sin = Data<float>(sin_PH),
                               .direction = direction});
    return y;
  }
  DispatchFused(x, [&]<class T>(T) {
    ParallelFor(x.size(0) * length, RowGrain(heads * head_dim), [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const T* source = Data<T>(x) + token / length * x.stride(0) + token % length * x.stride(1);
        simd::KernelsFor<T>().rotary(
            source, x.stride(2), MutableData<T>(y) + token * heads * head_dim, head_dim,
            Data<float>(cos_PH) + positions[token] * half,
            Data<float>(sin_PH) + positions[token] * half, heads, half, direction);
      }
    });
  });
  return y;
}

struct RotaryFunction : torch::autograd::Function<RotaryFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_BTNH, const Tensor& positions_BT,
                        const Tensor& cos_PH, const Tensor& sin_PH) {
    ctx->save_for_backward({positions_BT, cos_PH, sin_PH});
    return Rotate(x_BTNH, positions_BT, cos_PH, sin_PH, 1);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kActivation, "rotary backward");
    const variable_list saved = ctx->get_saved_variables();
    return {Rotate(grads[0], saved[0], saved[1], saved[2], -1), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

RotaryTable MakeRotaryTable(const Tensor& inverse_frequency, int64_t num_positions,
                            double attention_factor, at::ScalarType dtype) {
  // Angles in float64: at long contexts float32 leaves too few digits behind the whole turns.
  Tensor positions = at::arange(num_positions, inverse_frequency.options().dtype(at::kDouble));
  Tensor angles = at::outer(positions, inverse_frequency.to(at::kDouble));
  const at::ScalarType type = SumDtype(dtype);
  return {(angles.cos() * attention_factor).to(type), (angles.sin() * attention_factor).to(type)};
}

Tensor ApplyRotary(const Tensor& x_BTNH, const Tensor& positions_BT, const RotaryTable& table) {
  const TraceSpan span(TraceKind::kActivation, "rotary");
  SHOAL_CHECK(x_BTNH.dim() == 4 && x_BTNH.size(3) == 2 * table.cos_PH.size(1) &&
              positions_BT.numel() == x_BTNH.size(0) * x_BTNH.size(1))
      << "ApplyRotary: x " << x_BTNH.sizes() << ", positions " << positions_BT.sizes() << ", table "
      << table.cos_PH.sizes();
  if (!HasKernels(x_BTNH) || table.cos_PH.scalar_type() != at::kFloat) {
    return reference::ApplyRotary(x_BTNH, positions_BT, table);
  }
  const Tensor positions = positions_BT.contiguous();
  // Another device's kernel looks at them itself: reading them here would wait for it.
  const int64_t known = positions.device().is_cpu() ? positions.numel() : 0;
  for (int64_t i = 0; i < known; ++i) {
    const int64_t position = Data<int64_t>(positions)[i];
    SHOAL_CHECK(0 <= position && position < table.cos_PH.size(0))
        << "ApplyRotary: position " << position << ", the table holds " << table.cos_PH.size(0);
  }
  if (!at::GradMode::is_enabled()) return Rotate(x_BTNH, positions, table.cos_PH, table.sin_PH, 1);
  return RotaryFunction::apply(x_BTNH, positions, table.cos_PH, table.sin_PH);
}

}  // namespace shoal
