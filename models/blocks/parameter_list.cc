#include "models/blocks/parameter_list.h"

#include "absl/strings/str_cat.h"
#include "models/adapters/lora.h"
#include "models/family.h"

namespace shoal {

int ParameterList::Matrix(const std::string& slot, std::vector<int64_t> shape, double stddev,
                          const TensorCut& cut) {
  return Add(slot, std::move(shape), {.kind = Initializer::Kind::kNormal, .stddev = stddev}, true,
             cut);
}

int ParameterList::SharedMatrix(const std::string& slot, std::vector<int64_t> shape,
                                double stddev) {
  const int place = Matrix(slot, std::move(shape), stddev);
  specs_[place].partial_gradient = place_.size > 1;
  return place;
}

int ParameterList::SharedScale(const std::string& slot, int64_t size) {
  const int place = Scale(slot, size);
  specs_[place].partial_gradient = place_.size > 1;
  return place;
}

int ParameterList::Buffer(const std::string& slot, int64_t size) {
  const int place = Bias(slot, size);
  specs_[place].buffer = true;
  specs_[place].partial_gradient = false;
  return place;
}

int ParameterList::ExpertMatrix(const std::string& slot, int64_t expert, std::vector<int64_t> shape,
                                double stddev, const TensorCut& cut) {
  const int place = Add(slot, std::move(shape),
                        {.kind = Initializer::Kind::kNormal, .stddev = stddev}, true, cut, expert);
  specs_[place].expert_ranks = place_.expert_size;
  return place;
}

int ParameterList::Scale(const std::string& slot, int64_t size) {
  return Add(slot, {size}, {.kind = Initializer::Kind::kOnes}, false, {});
}

int ParameterList::Bias(const std::string& slot, int64_t size, const TensorCut& cut) {
  return Add(slot, {size}, {.kind = Initializer::Kind::kZeros}, false, cut);
}

int ParameterList::Add(const std::string& slot, std::vector<int64_t> shape, Initializer init,
                       bool decay, const TensorCut& cut, int64_t expert) {
  std::string name = config_.family->WeightName(slot, layer_, expert);
  if (name.empty() && status_.ok()) {
    status_ = absl::InvalidArgumentError(absl::StrCat(
        config_.family->source, ": weights has no entry for ", slot, ", which the stack needs"));
  }
  return AddSpec({.name = std::move(name),
                  .shape = std::move(shape),
                  .init = init,
                  .decay = decay,
                  .trainable = !config_.lora,
                  .cut = cut});
}

int ParameterList::Named(const std::string& name, std::vector<int64_t> shape,
                         const Initializer& init) {
  return AddSpec({.name = name, .shape = std::move(shape), .init = init});
}

int ParameterList::Adapter(const std::string& slot, const char* part, std::vector<int64_t> shape,
                           double stddev, const TensorCut& cut) {
  const Initializer init{
      .kind = stddev > 0 ? Initializer::Kind::kNormal : Initializer::Kind::kZeros,
      .stddev = stddev};
  const std::string weight = config_.family->WeightName(slot + ".weight", layer_);
  const int place = AddSpec({.name = LoraWeightName(weight, part),
                             .shape = std::move(shape),
                             .init = init,
                             .cut = cut,
                             .adapter = true});
  if (place_.size > 1 && cut.ranges.empty()) specs_[place].partial_gradient = true;
  return place;
}

std::string ParameterList::ModuleOf(const std::string& slot) const {
  const std::string weight = config_.family->WeightName(slot + ".weight", layer_);
  return weight.substr(0, weight.rfind('.'));
}

int ParameterList::AddSpec(ParameterSpec spec) {
  const TensorCut& cut = spec.cut;
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
