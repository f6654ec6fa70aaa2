#include "kernels/optimizer_step.h"

#include <cmath>
#include <cstring>
#include <span>

#include <ATen/ATen.h>

#include "core/status.h"
#include "kernels/device_kernels.h"
#include "kernels/fused.h"
#include "kernels/reference.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

constexpr int64_t kBlock =
    4096;  // Elements that a pass takes at once: they stay in the first-level cache

// Whether the fused loops serve these buffers; checks what the contract asks.
bool IsFusedStep(const char* what, const Tensor& weights, const Tensor& grads,
                 std::initializer_list<const Tensor*> moments, const Tensor& compute_copy) {
  auto check = [&](const Tensor& x, const char* name) {
    SHOAL_CHECK(x.is_contiguous() && x.numel() == weights.numel())
        << what << ": " << name << " holds " << x.sizes() << ", weights hold " << weights.sizes();
  };
  check(weights, "weights");
  check(grads, "grads");
  bool fused = weights.scalar_type() == at::kFloat && HasKernels(grads);
  for (const Tensor* moment : moments) {
    if (!moment->defined()) continue;
    check(*moment, "moment");
    fused = fused && moment->scalar_type() == at::kFloat;
  }
  if (compute_copy.defined()) {
    check(compute_copy, "compute_copy");
    fused = fused && HasKernels(compute_copy);
  }
  return fused;
}

// The operands as a device's kernels take them.
DeviceStep StepOf(const Tensor& weights, const Tensor& grads, const Tensor& moment1,
                  const Tensor& moment2, const Tensor& compute_copy) {
  const auto floats = [](const Tensor& x) { return x.defined() ? MutableData<float>(x) : nullptr; };
  DeviceStep step{.n = weights.numel(),
                  .weights = floats(weights),
                  .gradients = grads.const_data_ptr(),
                  .moment1 = floats(moment1),
                  .moment2 = floats(moment2)};
  if (compute_copy.defined()) {
    step.copy = compute_copy.mutable_data_ptr();
    step.copy_type = ElementTypeOf(compute_copy.scalar_type());
  }
  return step;
}

// Calls step(first, count, bfloat16 copy or null) block by block; copies of other types are made
// here.
template <class F>
void ForBlocks(const Tensor& weights, const Tensor& compute_copy, F&& step) {
  const int64_t n = weights.numel();
  const bool bf16_copy = compute_copy.defined() && compute_copy.scalar_type() == at::kBFloat16;
  const bool float_copy = compute_copy.defined() && compute_copy.scalar_type() == at::kFloat;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  ParallelFor(blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, n - first);
      step(first, count, bf16_copy ? MutableData<simd::Bf16>(compute_copy) + first : nullptr);
      if (float_copy) {
        std::memcpy(MutableData<float>(compute_copy) + first, Data<float>(weights) + first,
                    count * sizeof(float));
      }
    }
  });
  if (compute_copy.defined() && !bf16_copy && !float_copy) Tensor(compute_copy).copy_(weights);
}

}  // namespace

simd::AdamWScalars AdamWScalarsOf(const AdamWOptions& options) {
  const double step = static_cast<double>(options.step);
  return {
      .decay = static_cast<float>(1 - options.learning_rate * options.weight_decay),
      .beta1 = static_cast<float>(options.beta1),
      .one_minus_beta1 = static_cast<float>(1 - options.beta1),
      .beta2 = static_cast<float>(options.beta2),
      .one_minus_beta2 = static_cast<float>(1 - options.beta2),
      .step_size = static_cast<float>(options.learning_rate / (1 - std::pow(options.beta1, step))),
      .inverse_sqrt_correction2 =
          static_cast<float>(1 / std::sqrt(1 - std::pow(options.beta2, step))),
      .epsilon = static_cast<float>(options.epsilon),
      .grad_scale = static_cast<float>(options.grad_scale),
  };
}

void AdamWStep(Tensor& weights, const Tensor& grads, Tensor& moment1, Tensor& moment2,
               Tensor& compute_copy, const AdamWOptions& options) {
  SHOAL_CHECK(moment1.defined() && moment2.defined()) << "AdamWStep: both moments are needed";
  if (!IsFusedStep("AdamWStep", weights, grads, {&moment1, &moment2}, compute_copy)) {
    return reference::AdamWStep(weights, grads, moment1, moment2, compute_copy, options);
  }
  const simd::AdamWScalars scalars = AdamWScalarsOf(options);
  if (const DeviceKernels* device = DeviceKernelsFor(grads)) {
    return device->adamw(CallOn(grads), StepOf(weights, grads, moment1, moment2, compute_copy),
                         scalars);
  }
  DispatchFused(grads, [&]<class T>(T) {
    ForBlocks(weights, compute_copy, [&](int64_t first, int64_t count, simd::Bf16* copy) {
      simd::KernelsFor<T>().adamw(MutableData<float>(weights) + first, Data<T>(grads) + first,
                                  MutableData<float>(moment1) + first,
                                  MutableData<float>(moment2) + first, copy, count, scalars);
    });
  });
}

void SgdStep(Tensor& weights, const Tensor& grads, Tensor& momentum, Tensor& compute_copy,
             const SgdOptions& options) {
  SHOAL_CHECK(momentum.defined() == (options.momentum != 0))
      << "SgdStep: a momentum buffer iff momentum != 0";
  if (!IsFusedStep("SgdStep", weights, grads, {&momentum}, compute_copy)) {
    return reference::SgdStep(weights, grads, momentum, compute_copy, options);
  }
  const simd::SgdScalars scalars = {
      .learning_rate = static_cast<float>(options.learning_rate),
      .momentum = static_cast<float>(options.momentum),
      .weight_decay = static_cast<float>(options.weight_decay),
      .grad_scale = static_cast<float>(options.grad_scale),
      .nesterov = options.nesterov,
      .first_step = options.step == 1,
  };
  if (const DeviceKernels* device = DeviceKernelsFor(grads)) {
    return device->sgd(CallOn(grads), StepOf(weights, grads, momentum, Tensor(), compute_copy),
                       scalars);
  }
  DispatchFused(grads, [&]<class T>(T) {
    ForBlocks(weights, compute_copy, [&](int64_t first, int64_t count, simd::Bf16* copy) {
      simd::KernelsFor<T>().sgd(MutableData<float>(weights) + first, Data<T>(grads) + first,
                                momentum.defined() ? MutableData<float>(momentum) + first : nullptr,
                                copy, count, scalars);
    });
  });
}

namespace {

// BLAS's dot adds in an order that depends on the memory's alignment.
double SquaresInOrder(const Tensor& values) {
  double sum = 0;
  for (double value : std::span(values.const_data_ptr<double>(), values.numel()))
    sum += value * value;
  return sum;
}

}  // namespace

double SumOfSquares(const Tensor& values) {
  if (!values.device().is_cpu()) return SumOfSquaresOf(values).item<double>();
  const Tensor flat = values.contiguous().view({-1});
  const int64_t n = flat.numel(), blocks = (n + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks);
  ParallelFor(blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, n - first);
      if (IsFused(flat)) {
        sums[block] = DispatchFused(flat, [&]<class T>(T) {
          return simd::KernelsFor<T>().sum_of_squares(Data<T>(flat) + first, count);
        });
      } else {
        sums[block] = SquaresInOrder(flat.narrow(0, first, count).to(at::kDouble));
      }
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

Tensor SumOfSquaresOf(const Tensor& values) {
  const Tensor flat = values.contiguous().view({-1});
  if (const DeviceKernels* device = DeviceKernelsFor(flat)) {
    const Tensor sums =
        at::empty({DeviceSumScratch(flat.numel()) + 1}, flat.options().dtype(at::kDouble));
    device->sum_of_squares(CallOn(flat), flat.const_data_ptr(), flat.numel(),
                           MutableData<double>(sums) + 1, MutableData<double>(sums));
    return sums[0];
  }
  if (flat.device().is_cpu()) return at::scalar_tensor(SumOfSquares(flat), at::kDouble);
  return flat.to(at::kDouble).square().sum();
}

}  // namespace shoal
