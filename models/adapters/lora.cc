#include "models/adapters/lora.h"

#include <cmath>

#include <ATen/ATen.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/linear.h"
#include "models/blocks/projection.h"

namespace shoal {

LoraAdapters::LoraAdapters(ParameterList& parameters, int64_t in, const TensorCut& in_cut,
                           const std::vector<Matrix>& matrices) {
  const LoraOptions* options = parameters.lora();
  if (!options) return;
  scale_ = options->scale();
  rank_ = options->rank;
  std::vector<const Matrix*> adapted;
  size_t out = 0;
  for (const Matrix& matrix : matrices) {
    if (IsLoraTarget(*options, parameters.ModuleOf(matrix.slot))) {
      adapted.push_back(&matrix);
      adapters_.push_back({.b = -1, .first_out = out, .outs = matrix.outs});
    }
    out += matrix.outs.size();
  }
  // The variance of the uniform numbers that peft draws: U(-1, 1) / sqrt(in).
  const int64_t whole_in = in_cut.full_size > 0 ? in_cut.full_size : in;
  const double stddev = 1.0 / std::sqrt(3.0 * static_cast<double>(whole_in));
  for (const Matrix* matrix : adapted) {
    const int place = parameters.Adapter(matrix->slot, "lora_A", {rank_, in}, stddev, in_cut);
    if (first_a_ < 0) first_a_ = place;
  }
  for (size_t i = 0; i < adapted.size(); ++i) {
    int64_t rows = 0;
    for (int64_t size : adapted[i]->outs) rows += size;
    adapters_[i].b =
        parameters.Adapter(adapted[i]->slot, "lora_B", {rows, rank_}, 0.0, adapted[i]->out_cut);
  }
}

void LoraAdapters::AddTo(std::span<const Parameter> weights, const Tensor& x,
                         std::vector<Tensor>& outputs) const {
  if (adapters_.empty()) return;
  const auto as = weights.subspan(first_a_, adapters_.size());
  // (..., adapters * rank): one product where the A's lie end to end, as blocks declare them.
  std::vector<Tensor> inner;
  if (const std::optional<Parameter> joined = JoinAdjacent(as)) {
    inner = Linear(x, *joined).split(rank_, -1);
  } else {
    for (const Parameter& a : as) inner.push_back(Linear(x, a));
  }
  for (size_t i = 0; i < adapters_.size(); ++i) {
    const Adapter& adapter = adapters_[i];
    const Tensor delta = Linear(inner[i].contiguous(), weights[adapter.b]);
    const std::vector<Tensor> parts = delta.split_with_sizes(adapter.outs, -1);
    for (size_t j = 0; j < parts.size(); ++j) {
      Tensor& output = outputs[adapter.first_out + j];
      output = at::add(output, parts[j], scale_);
    }
  }
}

bool IsLoraTarget(const LoraOptions& options, const std::string& module) {
  for (const std::string& target : options.targets) {
    if (target == LoraOptions::kAllLinear || module == target ||
        absl::EndsWith(module, absl::StrCat(".", target)))
      return true;
  }
  return false;
}

std::string LoraWeightName(const std::string& weight, const char* part) {
  constexpr absl::string_view kEnding = ".weight";
  SHOAL_CHECK(absl::EndsWith(weight, kEnding)) << weight;
  return absl::StrCat(weight.substr(0, weight.size() - kEnding.size()), ".", part, kEnding);
}

Tensor LoraDelta(const Tensor& a, const Tensor& b, double scale, bool in_out) {
  const Tensor delta = at::matmul(b, a).mul_(scale);
  return in_out ? delta.t().contiguous() : delta;
}

}  // namespace shoal
