#include "trainer/federated/weight_vector.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace shoal {

std::vector<Tensor> WeightsOf(const std::vector<OptimizerSlice>& slices) {
  std::vector<Tensor> weights;
  for (const OptimizerSlice& slice : slices) weights.push_back(slice.weights);
  return weights;
}

WeightVector::WeightVector(const std::vector<OptimizerSlice>& slices, int copies)
    : slices_(slices), copies_(copies) {
  const auto add = [&](int slice, int64_t begin, int64_t count) {
    runs_.push_back({.slice = slice, .begin = begin, .offset = size_, .count = count});
    size_ += count;
  };
  for (int i = 0; i < static_cast<int>(slices.size()); ++i) {
    const OptimizerSlice& slice = slices[i];
    if (copies == 1) {
      add(i, 0, slice.weights.numel());
      continue;
    }
    SHOAL_CHECK(slice.weights.numel() == slice.layout->numel()) << "a shard of stacked models";
    for (const auto& part : slice.layout->Slices(0, slice.layout->numel()))
      add(i, part.offset, part.count / copies);
  }
}

void WeightVector::Read(absl::Span<const Tensor> tensors, int copy, Tensor& vector) const {
  for (const Run& run : runs_) {
    vector.narrow(0, run.offset, run.count)
        .copy_(tensors[run.slice].narrow(0, run.begin + copy * run.count, run.count));
  }
}

void WeightVector::Write(const Tensor& vector, int copy, absl::Span<const Tensor> tensors) const {
  if (runs_.empty()) return;
  const Tensor near = vector.to(tensors[0].device(), vector.scalar_type(), /*non_blocking=*/true);
  for (const Run& run : runs_) {
    tensors[run.slice]
        .narrow(0, run.begin + copy * run.count, run.count)
        .copy_(near.narrow(0, run.offset, run.count));
  }
}

std::vector<StatePiece> WeightVector::Pieces(const std::string& prefix, const Tensor& vector,
                                             bool saving) const {
  SHOAL_CHECK(copies_ == 1);
  std::vector<StatePiece> pieces;
  for (const Run& run : runs_) {
    const OptimizerSlice& slice = slices_[run.slice];
    for (const auto& [spec, whole, offset] :
         slice.layout->RunsOf(slice.begin, slice.begin + run.count)) {
      if (saving && !whole.owned) continue;
      pieces.push_back({.name = absl::StrCat(prefix, "/", spec.name),
                        .shape = spec.memory_shape(),
                        .begin = whole.first,
                        .data = vector.narrow(0, run.offset + offset, whole.count)});
    }
  }
  return pieces;
}

std::vector<WeightVector::Coordinates> WeightVector::CoordinatesIn(const Model& model) const {
  SHOAL_CHECK(copies_ == 1);
  std::map<std::string, int64_t> first;
  int64_t total = 0;
  for (const ParameterSpec& spec : model.unique_parameters()) {
    first[spec.name] = total;
    total += spec.full_numel();
  }
  std::vector<Coordinates> coordinates;
  for (const Run& run : runs_) {
    const OptimizerSlice& slice = slices_[run.slice];
    for (const auto& [spec, whole, offset] :
         slice.layout->RunsOf(slice.begin, slice.begin + run.count)) {
      coordinates.push_back({.offset = run.offset + offset,
                             .first = first.at(spec.name) + whole.first,
                             .count = whole.count});
    }
  }
  return coordinates;
}

}  // namespace shoal
