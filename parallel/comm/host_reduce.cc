#include "parallel/comm/host_reduce.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

namespace shoal {
namespace {

// The partial sums of a block stay in the first-level cache.
constexpr int64_t kBlock = 2048;

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

inline float Widen(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
// As kernels/simd/vector.h does it.
inline float Widen(Fp16 x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>((magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : scaled) | sign);
}
template <typename T>
inline T Widen(T x) {
  return x;
}

template <typename T, typename Acc>
inline T Narrow(Acc x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return Bf16{static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
  } else if constexpr (std::is_same_v<T, Fp16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t small =
        std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t half = magnitude >= 0x477ff000u   ? large
                          : magnitude >= 0x38800000u ? normal
                                                     : small;
    return Fp16{static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u))};
  } else {
    return x;
  }
}

struct Sum {
  template <typename T>
  T operator()(T a, T b) const {
    if constexpr (std::is_same_v<T, int64_t>) {
      return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
    } else {
      return a + b;
    }
  }
};
struct Max {
  template <typename T>
  T operator()(T a, T b) const {
    return (a > b) | (a != a) ? a : b;
  }
};
struct Min {
  template <typename T>
  T operator()(T a, T b) const {
    return (a < b) | (a != a) ? a : b;
  }
};

// Not under the address sanitizer: the clones are chosen before it is set up.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define SHOAL_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SHOAL_VECTOR_CLONES
#endif

// out[i] = a[i] op b[i]; `out` overlaps neither operand, or is exactly one of them.
template <typename Op, typename Acc, typename Out, typename A, typename B>
SHOAL_VECTOR_CLONES void Combine(Out* out, const A* a, const B* b, int64_t numel) {
#pragma GCC ivdep
  for (int64_t i = 0; i < numel; ++i)
    out[i] = Narrow<Out>(Op()(Acc(Widen(a[i])), Acc(Widen(b[i]))));
}

// The last pass reads the last source and writes `out`, so `out` may be any source: earlier passes
// only write `partial`.
template <typename Op, typename T, typename Acc>
void ReduceTyped(std::span<const std::byte* const> sources, std::byte* out_bytes, int64_t numel) {
  const size_t count = sources.size();
  auto source = [&](size_t s) { return reinterpret_cast<const T*>(sources[s]); };
  T* out = reinterpret_cast<T*>(out_bytes);
  if (count == 1) {
    if (out != source(0)) std::memmove(out, source(0), numel * sizeof(T));
    return;
  }
  Acc partial[kBlock];
  for (int64_t begin = 0; begin < numel; begin += kBlock) {
    const int64_t n = std::min(kBlock, numel - begin);
    if (count == 2) {
      Combine<Op, Acc>(out + begin, source(0) + begin, source(1) + begin, n);
      continue;
    }
    Combine<Op, Acc>(partial, source(0) + begin, source(1) + begin, n);
    for (size_t s = 2; s + 1 < count; ++s) Combine<Op, Acc>(partial, partial, source(s) + begin, n);
    Combine<Op, Acc>(out + begin, partial, source(count - 1) + begin, n);
  }
}

template <typename T, typename Acc>
void ReduceDtype(ReduceOp op, std::span<const std::byte* const> sources, std::byte* out,
                 int64_t numel) {
  switch (op) {
    case ReduceOp::kSum:
      return ReduceTyped<Sum, T, Acc>(sources, out, numel);
    case ReduceOp::kMax:
      return ReduceTyped<Max, T, Acc>(sources, out, numel);
    case ReduceOp::kMin:
      return ReduceTyped<Min, T, Acc>(sources, out, numel);
  }
}

}  // namespace

void ReduceInOrder(ReduceOp op, at::ScalarType dtype, std::span<const std::byte* const> sources,
                   std::byte* out, int64_t numel) {
  switch (dtype) {
    case c10::kFloat:
      return ReduceDtype<float, float>(op, sources, out, numel);
    case c10::kDouble:
      return ReduceDtype<double, double>(op, sources, out, numel);
    case c10::kBFloat16:
      return ReduceDtype<Bf16, float>(op, sources, out, numel);
    case c10::kHalf:
      return ReduceDtype<Fp16, float>(op, sources, out, numel);
    case c10::kLong:
      return ReduceDtype<int64_t, int64_t>(op, sources, out, numel);
    default:
      throw CommError("ReduceInOrder: dtype cannot be reduced");
  }
}

}  // namespace shoal
