// Operations that work a row at a time, beside what they must equal: tests of the CPU's kernels and
// of a device's compare the same.
#pragma once

#include "kernels/activation.h"
#include "kernels/norm.h"
#include "kernels/reference.h"
#include "tests/kernels/gradients.h"

namespace shoal {

struct RowOperation {
  Operation fused, exact;
};

inline constexpr double kNormEpsilon = 1e-5;

inline const RowOperation kRmsNorm = {
    [](const Tensors& x, const Parameters& w) { return RmsNorm(x[0], w[0], kNormEpsilon); },
    [](const Tensors& x, const Parameters& w) {
      return reference::RmsNorm(x[0], WeightOf(w[0]), kNormEpsilon);
    }};

inline const RowOperation kLayerNorm = {
    [](const Tensors& x, const Parameters& w) { return LayerNorm(x[0], w[0], w[1], kNormEpsilon); },
    [](const Tensors& x, const Parameters& w) {
      return reference::LayerNorm(x[0], WeightOf(w[0]), WeightOf(w[1]), kNormEpsilon);
    }};

// Both results count, the sum twice.
inline const RowOperation kAddRmsNorm = {
    [](const Tensors& x, const Parameters& w) {
      auto [normed, sum] = AddRmsNorm(x[0], x[1], w[0], kNormEpsilon);
      return at::cat({normed, sum * 2}, -1);
    },
    [](const Tensors& x, const Parameters& w) {
      Tensor sum = x[0] + x[1];
      return at::cat({reference::RmsNorm(sum, WeightOf(w[0]), kNormEpsilon), sum * 2}, -1);
    }};

inline const RowOperation kSwiGlu = {
    [](const Tensors& x, const Parameters&) { return SwiGlu(x[0], x[1]); },
    [](const Tensors& x, const Parameters&) { return reference::SwiGlu(x[0], x[1]); }};

inline const RowOperation kSwiGluPacked = {
    [](const Tensors& x, const Parameters&) { return SwiGluPacked(x[0]); },
    [](const Tensors& x, const Parameters&) {
      const int64_t half = x[0].size(-1) / 2;
      return reference::SwiGlu(x[0].narrow(-1, 0, half), x[0].narrow(-1, half, half));
    }};

inline RowOperation GeluOperation(GeluKind kind) {
  return {[kind](const Tensors& x, const Parameters&) { return Gelu(x[0], kind); },
          [kind](const Tensors& x, const Parameters&) { return reference::Gelu(x[0], kind); }};
}

}  // namespace shoal
