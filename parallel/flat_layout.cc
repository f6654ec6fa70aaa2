#include "parallel/flat_layout.h"

#include <algorithm>

namespace shoal {

FlatLayout::FlatLayout(std::vector<ParameterSpec> specs, int num_shards)
    : specs_(std::move(specs)), offsets_{0}, num_shards_(num_shards) {
  for (const ParameterSpec& spec : specs_) offsets_.push_back(offsets_.back() + spec.numel());
  shard_numel_ = (numel() + num_shards_ - 1) / num_shards_;
}

std::vector<FlatLayout::Slice> FlatLayout::Slices(int64_t begin, int64_t end) const {
  std::vector<Slice> slices;
  for (int i = 0; i < static_cast<int>(specs_.size()); ++i) {
    const int64_t from = std::max(begin, offsets_[i]);
    const int64_t to = std::min(end, offsets_[i + 1]);
    if (to <= from) continue;
    slices.push_back(
        {.parameter = i, .first = from - offsets_[i], .count = to - from, .offset = from});
  }
  return slices;
}

std::vector<FlatLayout::Run> FlatLayout::RunsOf(int64_t begin, int64_t end) const {
  std::vector<Run> runs;
  for (const Slice& slice : Slices(begin, end)) {
    const ParameterSpec& spec = specs_[slice.parameter];
    int64_t offset = slice.offset - begin;
    for (const ElementRun& whole : RunsInWhole(spec, slice.first, slice.count)) {
      runs.push_back({.spec = spec, .whole = whole, .offset = offset});
      offset += whole.count;
    }
  }
  return runs;
}

Tensor FlatLayout::View(const Tensor& flat, int parameter) const {
  const ParameterSpec& spec = specs_[parameter];
  const Tensor elements = flat.narrow(0, offsets_[parameter], spec.numel());
  if (spec.transposed()) return elements.view({spec.shape[1], spec.shape[0]}).t();
  return elements.view(spec.shape);
}

}  // namespace shoal
