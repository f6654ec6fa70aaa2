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

inline float Widen(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
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

// Each is one pass over its operands; `out` is none of them or exactly one of them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define SHOAL_VECTORISED __attribute__((target_clones("avx512f,avx512bw", "avx2", "default")))
#else
#define SHOAL_VECTORISED
#endif

