#include "parallel/quantized_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <ATen/ATen.h>

#include "core/dtype.h"
#include "core/status.h"
#include "kernels/device_kernels.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

constexpr int64_t kBlocksATime = 32;  // That a thread takes at least

template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The scale of a block; NaN where a value is not finite.
template <class T>
float ScaleOf(const T* values, int64_t count) {
  SumOf<T> largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    const SumOf<T> size = std::abs(static_cast<SumOf<T>>(values[i]));
    finite &= size <= std::numeric_limits<SumOf<T>>::max();
    largest = size > largest ? size : largest;
  }
  return finite ? static_cast<float>(largest / 127) : std::numeric_limits<float>::quiet_NaN();
}

template <class T>
void QuantizeBlock(const T* values, int64_t count, int8_t* codes, float& scale) {
  using Sum = SumOf<T>;
  constexpr Sum kMost = 127;
  scale = ScaleOf(values, count);
  if (scale < std::numeric_limits<float>::min()) scale = 0;
  if (!(scale > 0)) {  // Zeros, or NaN
    std::fill_n(codes, count, static_cast<int8_t>(0));
    return;
  }
  const Sum inverse = 1 / static_cast<Sum>(scale);
  for (int64_t i = 0; i < count; ++i) {
    const Sum code = std::nearbyint(static_cast<Sum>(values[i]) * inverse);
    codes[i] = static_cast<int8_t>(std::clamp(code, -kMost, kMost));
  }
}

// On any device, in the arithmetic above: the same bits.

// Calls visit(blocks (m, size) of `values`, first block): of all whole ones, of the rest.
template <class Visit>
void ForWholeBlocks(const Tensor& values, Visit&& visit) {
  const int64_t n = values.numel(), whole = n / kQuantizedBlock, rest = n % kQuantizedBlock;
  if (whole > 0) visit(values.narrow(0, 0, n - rest).view({whole, -1}), int64_t{0});
  if (rest > 0) visit(values.narrow(0, n - rest, rest).view({1, -1}), whole);
}

void QuantizeByOperators(const Tensor& values, const Tensor& packed) {
  const int64_t n = values.numel();
  const Tensor codes = packed.narrow(0, 0, n).view(at::kChar);
  Tensor scales = at::empty({(packed.numel() - n) / 4}, values.options().dtype(at::kFloat));
  ForWholeBlocks(values, [&](const Tensor& blocks, int64_t first) {
    const int64_t count = blocks.size(0), size = blocks.size(1);
    const Tensor wide = blocks.to(SumDtype(blocks.scalar_type()));
    const Tensor largest = wide.abs().amax({1});
    // By a tensor: a device may multiply by a number's inverse.
    Tensor scale = (largest / at::full_like(largest, 127)).to(at::kFloat);
    scale.masked_fill_(largest.isfinite().logical_not(), std::numeric_limits<double>::quiet_NaN());
    scale.masked_fill_(scale < std::numeric_limits<float>::min(), 0);
    scales.narrow(0, first, count).copy_(scale);
    const Tensor any = (scale > 0).unsqueeze(1);
    const Tensor code = (wide * scale.to(wide.scalar_type()).reciprocal().unsqueeze(1)).round();
    codes.narrow(0, first * kQuantizedBlock, count * size)
        .view({count, size})
        .copy_(at::where(any, code.clamp(-127, 127), at::zeros_like(code)));
  });
  packed.narrow(0, n, packed.numel() - n).copy_(scales.view(at::kByte));
}

void SumQuantizedByOperators(const Tensor& packed, int count, const Tensor& values) {
  const int64_t n = values.numel(), stride = QuantizedBytes(n);
  const at::ScalarType wide = SumDtype(values.scalar_type());
  Tensor sums = at::zeros({n}, values.options().dtype(wide));
  for (int part = 0; part < count; ++part) {
    const Tensor codes = packed.narrow(0, part * stride, n).view(at::kChar);
    // Copied: they need not lie where a float32 may.
    const Tensor scales =
        packed.narrow(0, part * stride + n, stride - n).clone().view(at::kFloat).to(wide);
    ForWholeBlocks(codes, [&](const Tensor& blocks, int64_t first) {
      const int64_t rows = blocks.size(0), size = blocks.size(1);
      sums.narrow(0, first * kQuantizedBlock, rows * size)
          .view({rows, size})
          .add_(blocks.to(wide).mul_(scales.narrow(0, first, rows).unsqueeze(1)));
    });
  }
  // As through a pointer: no version counts up of what autograd has saved.
  values.variable_data().copy_(sums);
}

}  // namespace

static_assert(kQuantizedBlock == kDeviceQuantizedBlock);

void Quantize(const Tensor& values, Tensor packed) {
  const int64_t n = values.numel(), blocks = (n + kQuantizedBlock - 1) / kQuantizedBlock;
  SHOAL_CHECK(values.is_contiguous() && packed.is_contiguous() &&
              packed.scalar_type() == at::kByte && packed.numel() == QuantizedBytes(n))
      << values.sizes() << " into " << packed.sizes();
  if (const DeviceKernels* device = DeviceKernelsFor(values))
    return device->quantize(CallOn(values), values.const_data_ptr(), n,
                            packed.mutable_data_ptr<uint8_t>());
  if (!values.is_cpu()) return QuantizeByOperators(values, packed);
  int8_t* codes = reinterpret_cast<int8_t*>(packed.mutable_data_ptr<uint8_t>());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "Quantize", [&] {
    const scalar_t* from = values.const_data_ptr<scalar_t>();
    ParallelFor(blocks, kBlocksATime, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kQuantizedBlock;
        float scale = 0;
        QuantizeBlock(from + first, std::min(kQuantizedBlock, n - first), codes + first, scale);
        std::memcpy(codes + n + 4 * block, &scale, sizeof(scale));
      }
    });
  });
}

void SumQuantized(const Tensor& packed, int count, Tensor values) {
  const int64_t n = values.numel(), blocks = (n + kQuantizedBlock - 1) / kQuantizedBlock,
                stride = QuantizedBytes(n);
  SHOAL_CHECK(values.is_contiguous() && packed.is_contiguous() &&
              packed.scalar_type() == at::kByte && packed.numel() == count * stride && count > 0)
      << count << " in " << packed.sizes() << " into " << values.sizes();
  if (const DeviceKernels* device = DeviceKernelsFor(values))
    return device->sum_quantized(CallOn(values), packed.const_data_ptr<uint8_t>(), count, n,
                                 values.mutable_data_ptr());
  if (!values.is_cpu()) return SumQuantizedByOperators(packed, count, values);
  const int8_t* all = reinterpret_cast<const int8_t*>(packed.const_data_ptr<uint8_t>());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, values.scalar_type(), "SumQuantized", [&] {
        using Sum = SumOf<scalar_t>;
        scalar_t* to = values.mutable_data_ptr<scalar_t>();
        ParallelFor(blocks, kBlocksATime, [&](int64_t begin, int64_t end) {
          for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block * kQuantizedBlock,
                          size = std::min(kQuantizedBlock, n - first);
            Sum sums[kQuantizedBlock] = {};
            for (int part = 0; part < count; ++part) {
              const int8_t* codes = all + part * stride;
              float scale;
              std::memcpy(&scale, codes + n + 4 * block, sizeof(scale));
              for (int64_t i = 0; i < size; ++i)
                sums[i] += static_cast<Sum>(codes[first + i]) * static_cast<Sum>(scale);
            }
            for (int64_t i = 0; i < size; ++i) to[first + i] = static_cast<scalar_t>(sums[i]);
          }
        });
      });
}

}  // namespace shoal
