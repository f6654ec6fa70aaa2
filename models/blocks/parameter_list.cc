#include "models/blocks/parameter_list.h"

#include "models/family.h"

namespace shoal {

int ParameterList::Matrix(const std::string& slot, std::vector<int64_t> shape, double stddev,
                          const TensorCut& cut) {
  return Add(slot, std::move(shape), {.kind = Initializer::Kind::kNormal, .stddev = stddev}, true,
             cut);
}

int ParameterList::Scale(const std::string& slot, int64_t size) {
  return Add(slot, {size}, {.kind = Initializer::Kind::kOnes}, false, {});
}

int ParameterList::Bias(const std::string& slot, int64_t size, const TensorCut& cut) {
  return Add(slot, {size}, {.kind = Initializer::Kind::kZeros}, false, cut);
}

int ParameterList::Add(const std::string& slot, std::vector<int64_t> shape, Initializer init,
                       bool decay, const TensorCut& cut) {
  std::string name = config_.family->WeightName(slot, layer_);
  if (name.empty() && status_.ok()) {
    status_ = absl::InvalidArgumentError(absl::StrCat(
        config_.family->source, ": weights has no entry for ", slot, ", which the stack needs"));
  }
  ParameterSpec spec{
      .name = std::move(name), .shape = std::move(shape), .init = init, .decay = decay, .cut = cut};
  if (place_.size > 1 && cut.ranges.empty()) {
    // Held whole by every rank, and used on the rank's own rows.
    spec.owned = place_.rank == 0;
    spec.partial_gradient = place_.sequence_parallel;
  }
  for (const TensorCut::Range& range : cut.ranges) spec.partial_gradient |= range.shared;
  specs_.push_back(std::move(spec));
  return static_cast<int>(specs_.size()) - 1;
}

}  // namespace shoal
