#include "trainer/objective.h"

#include <algorithm>

#include <ATen/ops/zeros.h>

#include "core/status.h"

namespace shoal {

ObjectiveMetrics::ObjectiveMetrics(const std::vector<std::string>& names)
    : names_(names), sums_(2 * names.size()) {}

size_t ObjectiveMetrics::Find(const std::string& name) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  SHOAL_CHECK(found != names_.end()) << "metric_names() lacks \"" << name << "\"";
  return found - names_.begin();
}

std::vector<std::pair<std::string, double>> ObjectiveMetrics::Reduce(const DeviceMesh& mesh) const {
  std::vector<std::pair<std::string, double>> means;
  if (names_.empty()) return means;
  Tensor sums = at::zeros({static_cast<int64_t>(names_.size()), 2}, at::kDouble);
  double* values = sums.mutable_data_ptr<double>();
  if (mesh.reports_loss()) {
    const std::vector<double> mine = ReadSums(sums_);
    std::copy(mine.begin(), mine.end(), values);
  }
  mesh.control().AllReduce(sums);
  for (size_t i = 0; i < names_.size(); ++i) {
    if (values[2 * i + 1] != 0) means.emplace_back(names_[i], values[2 * i] / values[2 * i + 1]);
  }
  return means;
}

}  // namespace shoal
