#include "kernels/accumulate.h"

#include <ATen/ATen.h>

#include "core/status.h"
#include "kernels/fused.h"
#include "kernels/threads.h"

namespace shoal {

void Accumulate(const Tensor& x, const Tensor& sum) {
  SHOAL_CHECK(x.sizes() == sum.sizes() && x.is_contiguous() && sum.is_contiguous())
      << "Accumulate: " << x.sizes() << " into " << sum.sizes();
  if (!IsFused(x) || !IsFused(sum) || sum.scalar_type() == at::kHalf) {
    sum.add_(x);
    return;
  }
  constexpr int64_t kGrain = 1 << 14;
  DispatchFused(x, [&]<class T>(T) {
    ParallelFor(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      const auto& kernels = simd::KernelsFor<T>();
      if (sum.scalar_type() == at::kFloat)
        kernels.accumulate_float(Data<T>(x) + begin, MutableData<float>(sum) + begin, end - begin);
      else
        kernels.accumulate_bf16(Data<T>(x) + begin, MutableData<simd::Bf16>(sum) + begin,
                                end - begin);
    });
  });
}

}  // namespace shoal
