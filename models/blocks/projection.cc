#include "models/blocks/projection.h"

#include <numeric>

#include <ATen/ATen.h>

namespace shoal {
namespace {

// Do b's elements follow a's in one storage?
bool Follows(const Tensor& a, const Tensor& b) {
  return a.is_contiguous() && b.is_contiguous() && a.scalar_type() == b.scalar_type() &&
         a.storage().unsafeGetStorageImpl() == b.storage().unsafeGetStorageImpl() &&
         b.storage_offset() == a.storage_offset() + a.numel();
}

Tensor Stacked(const Tensor& first, int64_t rows) {
  std::vector<int64_t> sizes = first.sizes().vec(), strides = first.strides().vec();
  sizes[0] = rows;
  return first.detach().as_strided(sizes, strides);
}

}  // namespace

std::optional<Parameter> JoinAdjacent(std::span<const Parameter> parameters) {
  int64_t rows = parameters[0].value.size(0);
  const bool has_grad = parameters[0].grad.defined();
  for (size_t i = 1; i < parameters.size(); ++i) {
    const Parameter &a = parameters[i - 1], &b = parameters[i];
    if (!Follows(a.value, b.value) || b.grad.defined() != has_grad) return std::nullopt;
    if (has_grad && !Follows(a.grad, b.grad)) return std::nullopt;
    rows += b.value.size(0);
  }
  Parameter joined{.value = Stacked(parameters[0].value, rows), .grad = Tensor()};
  if (has_grad) {
    joined.grad = Stacked(parameters[0].grad, rows);
    joined.value.set_requires_grad(true);
  }
  return joined;
}

Projection::Projection(ParameterList& parameters, const Options& options)
    : in_(options.in),
      outs_(options.outs),
      layout_(options.layout),
      first_bias_(-1),
      count_(static_cast<int>(options.slots.size())) {
  SHOAL_CHECK(count_ == 1 || options.slots.size() == outs_.size());
  const auto out = [&](int i) {
    return count_ == 1 ? std::accumulate(outs_.begin(), outs_.end(), int64_t{0}) : outs_[i];
  };
  for (int i = 0; i < count_; ++i) {
    const std::vector<int64_t> shape = layout_ == LinearLayout::kOutIn
                                           ? std::vector<int64_t>{out(i), in_}
                                           : std::vector<int64_t>{in_, out(i)};
    const int place = parameters.Matrix(options.slots[i] + ".weight", shape, options.stddev);
    if (i == 0) first_weight_ = place;
  }
  for (int i = 0; options.bias && i < count_; ++i) {
    const int place = parameters.Bias(options.slots[i] + ".bias", out(i));
    if (i == 0) first_bias_ = place;
  }
}

std::vector<Tensor> Projection::Forward(std::span<const Parameter> weights, const Tensor& x) const {
  const auto matrices = weights.subspan(first_weight_, count_);
  const auto biases =
      first_bias_ < 0 ? std::span<const Parameter>() : weights.subspan(first_bias_, count_);
  if (count_ == 1 || layout_ == LinearLayout::kOutIn) {
    const std::optional<Parameter> matrix = JoinAdjacent(matrices);
    const std::optional<Parameter> bias = biases.empty() ? std::nullopt : JoinAdjacent(biases);
    if (matrix && bias.has_value() == !biases.empty()) {
      const Tensor y = Linear(x, *matrix, bias ? &*bias : nullptr, layout_);
      if (outs_.size() == 1) return {y};
      return y.split_with_sizes(outs_, -1);
    }
  }
  std::vector<Tensor> outputs;
  for (int i = 0; i < count_; ++i) {
    outputs.push_back(Linear(x, matrices[i], biases.empty() ? nullptr : &biases[i], layout_));
  }
  return outputs;
}

int64_t Projection::multiply_adds() const {
  return in_ * std::accumulate(outs_.begin(), outs_.end(), int64_t{0});
}

}  // namespace shoal
