#include "kernels/few_rows_product.h"

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include <ATen/ATen.h>

#include "kernels/fused.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

// Rows of the weight that a thread multiplies before it takes more. With one group of rows all of
// its share, read in one run, which is what memory is fastest at; what several groups are
// multiplied with must stay in its cache.
int64_t OutsATurn(int64_t outs, int64_t row_bytes, bool several_groups, int64_t threads) {
  constexpr int64_t kCachedBytes = 64 << 10;
  const int64_t step = several_groups ? kCachedBytes / std::max<int64_t>(row_bytes, 1)
                                      : (outs + threads - 1) / threads;
  return std::max<int64_t>(8, (step + 7) / 8 * 8);
}

// a b with b stored (N, K).
template <class T, class C>
void FewRowsOutIn(const Tensor& a_MK, const Tensor& b_KN, const T* bias, Tensor& c_MN) {
  const auto& kernels = simd::KernelsFor<T>();
  const int64_t rows = a_MK.size(0), depth = a_MK.size(1), outs = c_MN.size(1);
  const int64_t threads =
      std::min<int64_t>(GetNumThreads(), (outs + RowGrain(depth) - 1) / RowGrain(depth));
  const int64_t step =
      OutsATurn(outs, depth * static_cast<int64_t>(sizeof(T)), rows > simd::kMaxFewRows, threads);
  const Tensor packed = at::empty({rows, depth}, a_MK.options());
  std::vector<simd::FewRows<T>> groups;
  for (int64_t m = 0; m < rows; m += simd::kMaxFewRows) {
    T* target = MutableData<T>(packed) + m * depth;
    groups.push_back({.rows = Data<T>(a_MK) + m * a_MK.stride(0),
                      .stride = a_MK.stride(0),
                      .packed = target,
                      .count = std::min(simd::kMaxFewRows, rows - m),
                      .depth = depth});
    kernels.pack_few_rows(groups.back().rows, groups.back().stride, target, groups.back().count,
                          depth);
  }
  std::atomic<int64_t> next{0};
  ParallelFor(std::min(threads, (outs + step - 1) / step), 1, [&](int64_t, int64_t) {
    for (int64_t first; (first = step * next++) < outs;) {
      const int64_t count = std::min(step, outs - first);
      const T* b = Data<T>(b_KN) + first * b_KN.stride(1);
      C* c = MutableData<C>(c_MN) + first;
      for (const simd::FewRows<T>& group : groups) {
        if constexpr (std::is_same_v<T, C>) {
          kernels.few_rows_product(group, b, b_KN.stride(1), bias ? bias + first : bias, c,
                                   c_MN.stride(0), count);
        } else {
          kernels.few_rows_product_to_float(group, b, b_KN.stride(1), bias ? bias + first : bias, c,
                                            c_MN.stride(0), count);
        }
        c += group.count * c_MN.stride(0);
      }
    }
  });
}

// a b with b stored (K, N): outs [begin, end).
template <class T>
void FewRowsInOut(const Tensor& a_MK, const Tensor& b_KN, const T* bias, Tensor& c_MN,
                  int64_t begin, int64_t end) {
  simd::KernelsFor<T>().few_rows_product_in_out(
      Data<T>(a_MK), a_MK.stride(0), Data<T>(b_KN) + begin, b_KN.stride(0),
      bias ? bias + begin : nullptr, MutableData<T>(c_MN) + begin, c_MN.stride(0), a_MK.size(0),
      end - begin, a_MK.size(1));
}

}  // namespace

bool FewRowsProduct(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN,
                    const MatMulOptions& options) {
  const at::ScalarType type = a_MK.scalar_type();
  const int64_t depth = a_MK.size(1), outs = c_MN.size(1);
  if (a_MK.size(0) > kMaxRowsOfEqualBits || options.accumulate || !IsFused(a_MK) ||
      b_KN.scalar_type() != type || (depth > 1 && a_MK.stride(1) != 1)) {
    return false;
  }
  const bool out_in = depth <= 1 || b_KN.stride(0) == 1, in_out = outs <= 1 || b_KN.stride(1) == 1;
  const bool to_float = c_MN.scalar_type() == at::kFloat;
  if (c_MN.scalar_type() != type && !(to_float && out_in)) return false;
  if (!out_in && !in_out) return false;
  const Tensor& bias = options.bias;
  if (bias.defined() && (bias.scalar_type() != type || !bias.is_contiguous())) return false;
  DispatchFused(a_MK, [&]<class T>(T) {
    const T* added = bias.defined() ? Data<T>(bias) : nullptr;
    if (!out_in) {
      ParallelFor(outs, RowGrain(depth), [&](int64_t begin, int64_t end) {
        FewRowsInOut<T>(a_MK, b_KN, added, c_MN, begin, end);
      });
    } else if (to_float) {
      FewRowsOutIn<T, float>(a_MK, b_KN, added, c_MN);
    } else {
      FewRowsOutIn<T, T>(a_MK, b_KN, added, c_MN);
    }
  });
  return true;
}

}  // namespace shoal
