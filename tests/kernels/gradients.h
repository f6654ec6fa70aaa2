// Runs an operation and its exact counterpart on the same rounded inputs, forward and backward.
#pragma once

#include <functional>
#include <vector>

#include "tests/kernels/compare.h"

namespace shoal {

using Tensors = std::vector<Tensor>;
using Parameters = std::vector<Parameter>;

inline Tensor Random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

// A view whose rows lie apart.
inline Tensor Strided(const Tensor& x) { return at::cat({x, x}, -1).narrow(-1, 0, x.size(-1)); }

struct Gradients {
  Tensor out;
  std::vector<Tensor> inputs, weights;  // One each, in order
};

using Operation = std::function<Tensor(const Tensors& inputs, const Parameters& weights)>;

// Weights' gradients start at 0.25, to see that they are added to. Runs on `device`; what comes
// back lies in host memory.
inline Gradients RunOperation(const Operation& operation, const std::vector<Tensor>& inputs,
                              const std::vector<Tensor>& weights, const Tensor& upstream,
                              at::ScalarType dtype, at::ScalarType grad_dtype,
                              c10::Device device = at::kCPU) {
  std::vector<Tensor> leaves, views;
  for (const Tensor& x : inputs) {
    leaves.push_back(x.detach().to(device, dtype, false, true).requires_grad_(true));
    // Strides survive: a view of the leaf with the input's own layout.
    Tensor leaf = leaves.back();
    views.push_back(x.is_contiguous() ? leaf : at::cat({leaf, leaf}, -1).narrow(-1, 0, x.size(-1)));
  }
  std::vector<Parameter> parameters;
  for (const Tensor& w : weights) {
    Tensor value = w.detach().to(device, dtype, false, true).contiguous().requires_grad_(true);
    parameters.push_back({value, at::full(w.sizes(), 0.25, value.options().dtype(grad_dtype))});
  }
  Gradients result;
  result.out = operation(views, parameters);
  result.out.backward(upstream.to(result.out.options()));
  result.out = result.out.cpu();
  for (const Tensor& leaf : leaves) result.inputs.push_back(leaf.grad().cpu());
  for (const Parameter& p : parameters) result.weights.push_back(p.grad.cpu());
  return result;
}

// `fused` in `dtype` on `device` against `exact` in float64 on the host, both on the inputs rounded
// to dtype.
inline void ExpectMatches(const Operation& fused, const Operation& exact,
                          const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                          at::ScalarType dtype, double tolerance_factor = 1,
                          c10::Device device = at::kCPU) {
  auto rounded = [&](const std::vector<Tensor>& tensors) {
    std::vector<Tensor> result;
    for (const Tensor& x : tensors) {
      Tensor y = x.to(dtype).to(at::kDouble);
      result.push_back(x.is_contiguous() ? y : at::cat({y, y}, -1).narrow(-1, 0, x.size(-1)));
    }
    return result;
  };
  const std::vector<Tensor> in = rounded(inputs), w = rounded(weights);
  Tensor shape_of = [&] {
    at::NoGradGuard no_grad;
    std::vector<Parameter> parameters;
    for (const Tensor& x : w) parameters.push_back({x, {}});
    return exact(in, parameters);
  }();
  const Tensor upstream = at::randn(shape_of.sizes(), at::kDouble).to(dtype).to(at::kDouble);
  const Gradients want = RunOperation(exact, in, w, upstream, at::kDouble, at::kDouble);
  const Gradients got = RunOperation(fused, in, w, upstream, dtype,
                                     dtype == at::kDouble ? at::kDouble : at::kFloat, device);
  EXPECT_TRUE(Near(got.out, want.out, dtype, tolerance_factor));
  for (size_t i = 0; i < in.size(); ++i) {
    EXPECT_TRUE(Near(got.inputs[i], want.inputs[i], dtype, tolerance_factor))
        << "gradient of input " << i;
  }
  for (size_t i = 0; i < w.size(); ++i) {
    EXPECT_TRUE(Near(got.weights[i], want.weights[i], dtype, tolerance_factor))
        << "gradient of weight " << i;
  }
}

// Gradients of an operation's inputs in float64 against central differences of sum(out * upstream).
inline void ExpectFiniteDifferences(const Operation& operation, const std::vector<Tensor>& inputs,
                                    const std::vector<Tensor>& weights) {
  auto value = [&](const std::vector<Tensor>& in, const std::vector<Tensor>& w,
                   const Tensor& upstream) {
    at::NoGradGuard no_grad;
    std::vector<Parameter> parameters;
    for (const Tensor& x : w) parameters.push_back({x, {}});
    return (operation(in, parameters) * upstream).sum().item<double>();
  };
  std::vector<Tensor> in, w;
  for (const Tensor& x : inputs) in.push_back(x.to(at::kDouble).contiguous().clone());
  for (const Tensor& x : weights) w.push_back(x.to(at::kDouble).contiguous().clone());
  std::vector<Parameter> plain;
  for (const Tensor& x : w) plain.push_back({x, {}});
  Tensor upstream;
  {
    at::NoGradGuard no_grad;
    upstream = at::randn(operation(in, plain).sizes(), at::kDouble);
  }
  const Gradients got = RunOperation(operation, in, w, upstream, at::kDouble, at::kDouble);
  auto check = [&](Tensor& x, const Tensor& gradient, double start) {
    constexpr double kStep = 1e-6;
    for (int64_t i = 0; i < x.numel(); ++i) {
      double& entry = x.mutable_data_ptr<double>()[i];
      const double saved = entry;
      entry = saved + kStep;
      const double above = value(in, w, upstream);
      entry = saved - kStep;
      const double below = value(in, w, upstream);
      entry = saved;
      EXPECT_NEAR(gradient.contiguous().const_data_ptr<double>()[i] - start,
                  (above - below) / (2 * kStep), 1e-6)
          << "entry " << i << " of " << x.sizes();
    }
  };
  for (size_t i = 0; i < in.size(); ++i) check(in[i], got.inputs[i], 0);
  for (size_t i = 0; i < w.size(); ++i) check(w[i], got.weights[i], 0.25);
}

}  // namespace shoal
