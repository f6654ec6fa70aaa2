#include "parallel/quantized_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <ATen/Dispatch.h>

#include "core/status.h"
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

}  // namespace

void Quantize(const Tensor& values, Tensor packed) {
  const int64_t n = values.numel(), blocks = (n + kQuantizedBlock - 1) / kQuantizedBlock;
  SHOAL_CHECK(values.is_contiguous() && packed.is_contiguous() &&
              packed.scalar_type() == at::kByte && packed.numel() == QuantizedBytes(n))
      << values.sizes() << " into " << packed.sizes();
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
