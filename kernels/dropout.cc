// Legend: R rows, C channels.
#include "kernels/dropout.h"

#include <cmath>

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

Tensor Masked(const Tensor& x_in, double rate, const Tensor& keys_R, const Tensor& places_R) {
  const Tensor x = x_in.contiguous();
  Tensor y = at::empty_like(x);
  const int64_t columns = x.size(-1);
  if (const DeviceKernels* device = DeviceKernelsFor(x)) {
    const simd::DropoutMask mask = MaskOf(rate, 0);
    device->dropout(CallOn(x), {.x = x.const_data_ptr(),
                                .y = y.mutable_data_ptr(),
                                .shape = {NumRows(x), columns},
                                .keys = Data<int64_t>(keys_R),
                                .places = Data<int64_t>(places_R),
                                .threshold = mask.threshold,
                                .scale = mask.scale});
    return y;
  }
  const int64_t* keys = Data<int64_t>(keys_R);
  const int64_t* places = Data<int64_t>(places_R);
  DispatchFused(x, [&]<class T>(T) {
    ParallelFor(NumRows(x), RowGrain(columns), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        simd::KernelsFor<T>().dropout(Data<T>(x) + r * columns, MutableData<T>(y) + r * columns,
                                      columns, static_cast<uint32_t>(places[r]),
                                      MaskOf(rate, static_cast<uint64_t>(keys[r])));
      }
    });
  });
  return y;
}

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, double rate, const Tensor& keys_R,
                        const Tensor& places_R) {
    ctx->saved_data["rate"] = rate;
    ctx->saved_data["keys"] = keys_R;
    ctx->saved_data["places"] = places_R;
    return Masked(x, rate, keys_R, places_R);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const TraceSpan span(TraceKind::kActivation, "dropout backward");
    return {Masked(grads[0], ctx->saved_data["rate"].toDouble(), ctx->saved_data["keys"].toTensor(),
                   ctx->saved_data["places"].toTensor()),
            Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

simd::DropoutMask MaskOf(double rate, uint64_t key) {
  return {.key = key,
          .threshold = static_cast<uint32_t>(std::llround(rate * 0x1.0p32)),
          .scale = static_cast<float>(1 / (1 - rate))};
}

Tensor Dropout(const Tensor& x, double rate, const Tensor& keys_R, const Tensor& places_R) {
  const TraceSpan span(TraceKind::kActivation, "dropout");
  SHOAL_CHECK(0 <= rate && rate < 1) << "Dropout: rate " << rate;
  SHOAL_CHECK(keys_R.numel() == NumRows(x) && places_R.numel() == NumRows(x))
      << "Dropout: x " << x.sizes() << ", " << keys_R.numel() << " keys, " << places_R.numel()
      << " places";
  if (rate == 0) return x;
  if (!HasKernels(x))
    return reference::Dropout(x, rate, keys_R.contiguous(), places_R.contiguous());
  // Host memory that is not pinned has been read when a copy returns.
  const Tensor keys = keys_R.to(x.device(), at::kLong, /*non_blocking=*/true).contiguous(),
               places = places_R.to(x.device(), at::kLong, /*non_blocking=*/true).contiguous();
  return DropoutFunction::apply(x, rate, keys, places);
}

}  // namespace shoal
