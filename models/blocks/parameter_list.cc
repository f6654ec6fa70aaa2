#include "models/blocks/parameter_list.h"

#include "models/family.h"

namespace shoal {

int ParameterList::Matrix(const std::string& slot, std::vector<int64_t> shape, double stddev) {
  return Add(slot, std::move(shape), {.kind = Initializer::Kind::kNormal, .stddev = stddev}, true);
}

int ParameterList::Scale(const std::string& slot, int64_t size) {
  return Add(slot, {size}, {.kind = Initializer::Kind::kOnes}, false);
}

int ParameterList::Bias(const std::string& slot, int64_t size) {
  return Add(slot, {size}, {.kind = Initializer::Kind::kZeros}, false);
}

int ParameterList::Add(const std::string& slot, std::vector<int64_t> shape, Initializer init,
                       bool decay) {
  std::string name = config_.family->WeightName(slot, layer_);
  if (name.empty() && status_.ok()) {
    status_ = absl::InvalidArgumentError(absl::StrCat(
        config_.family->source, ": weights has no entry for ", slot, ", which the stack needs"));
  }
  specs_.push_back(
      {.name = std::move(name), .shape = std::move(shape), .init = init, .decay = decay});
  return static_cast<int>(specs_.size()) - 1;
}

}  // namespace shoal
