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

namespace {

int64_t Total(const std::vector<TensorCut::Range>& ranges) {
  int64_t total = 0;
  for (const TensorCut::Range& range : ranges) total += range.end - range.begin;
  return total;
}

// One cut of outputs that lie end to end in one matrix.
TensorCut Joined(int dim, const std::vector<int64_t>& outs,
                 std::span<const std::vector<TensorCut::Range>> ranges) {
  TensorCut cut{.dim = dim};
  if (ranges.empty()) return cut;
  for (size_t i = 0; i < outs.size(); ++i) {
    for (TensorCut::Range range : ranges[i]) {
      range.begin += cut.full_size;
      range.end += cut.full_size;
      cut.ranges.push_back(range);
    }
    cut.full_size += outs[i];
  }
  return cut;
}

}  // namespace

Projection::Projection(ParameterList& parameters, const Options& options)
    : layout_(options.layout),
      bias_later_(options.cut == Options::Cut::kInputs && parameters.place().size > 1),
      first_bias_(-1),
      count_(static_cast<int>(options.slots.size())) {
  SHOAL_CHECK(count_ == 1 || options.slots.size() == options.outs.size());
  const bool cut_outputs = options.cut == Options::Cut::kOutputs, shared = !options.ranges.empty();
  SHOAL_CHECK(shared == (parameters.place().size > 1));
  multiply_adds_ = static_cast<double>(options.in) *
                   std::accumulate(options.outs.begin(), options.outs.end(), int64_t{0});
  const int64_t in = shared && !cut_outputs ? Total(options.ranges[0]) : options.in;
  for (size_t i = 0; i < options.outs.size(); ++i)
    outs_.push_back(shared && cut_outputs ? Total(options.ranges[i]) : options.outs[i]);

  // Outputs [first, last) that matrix i holds.
  const auto first = [&](int i) { return count_ == 1 ? 0 : i; };
  const auto last = [&](int i) { return count_ == 1 ? static_cast<int>(outs_.size()) : i + 1; };
  const auto out = [&](int i) {
    return std::accumulate(outs_.begin() + first(i), outs_.begin() + last(i), int64_t{0});
  };
  const auto cut_of_outputs = [&](int i, int dim) {
    const std::vector<int64_t> outs(options.outs.begin() + first(i),
                                    options.outs.begin() + last(i));
    return Joined(dim, outs,
                  shared ? std::span(options.ranges).subspan(first(i), outs.size())
                         : std::span<const std::vector<TensorCut::Range>>());
  };
  const bool out_in = layout_ == LinearLayout::kOutIn;
  for (int i = 0; i < count_; ++i) {
    const std::vector<int64_t> shape =
        out_in ? std::vector<int64_t>{out(i), in} : std::vector<int64_t>{in, out(i)};
    const TensorCut cut = cut_outputs ? cut_of_outputs(i, out_in ? 0 : 1)
                                      : Joined(out_in ? 1 : 0, {options.in}, options.ranges);
    const int place = parameters.Matrix(options.slots[i] + ".weight", shape, options.stddev, cut);
    if (i == 0) first_weight_ = place;
  }
  for (int i = 0; options.bias && i < count_; ++i) {
    const int place = parameters.Bias(options.slots[i] + ".bias", out(i),
                                      cut_outputs ? cut_of_outputs(i, 0) : TensorCut{});
    if (i == 0) first_bias_ = place;
  }
  std::vector<LoraAdapters::Matrix> matrices;
  for (int i = 0; i < count_; ++i) {
    matrices.push_back({.slot = options.slots[i],
                        .outs = {outs_.begin() + first(i), outs_.begin() + last(i)},
                        .out_cut = cut_outputs ? cut_of_outputs(i, 0) : TensorCut{}});
  }
  const TensorCut in_cut = cut_outputs ? TensorCut{} : Joined(1, {options.in}, options.ranges);
  adapters_ = LoraAdapters(parameters, in, in_cut, matrices);
}

std::vector<Tensor> Projection::Forward(std::span<const Parameter> weights, const Tensor& x,
                                        bool adapters) const {
  std::vector<Tensor> outputs = Products(weights, x);
  if (adapters) adapters_.AddTo(weights, x, outputs);
  return outputs;
}

std::vector<Tensor> Projection::Products(std::span<const Parameter> weights,
                                         const Tensor& x) const {
  const auto matrices = weights.subspan(first_weight_, count_);
  const auto biases = first_bias_ < 0 || bias_later_ ? std::span<const Parameter>()
                                                     : weights.subspan(first_bias_, count_);
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

Tensor Projection::AddBiasTo(std::span<const Parameter> weights, const Tensor& sum) const {
  return first_bias_ >= 0 && bias_later_ ? AddBias(sum, weights[first_bias_]) : sum;
}

}  // namespace shoal
