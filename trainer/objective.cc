#include "trainer/objective.h"

#include <algorithm>

#include <ATen/ops/zeros.h>

#include "core/status.h"

namespace shoal {

ObjectiveMetrics::ObjectiveMetrics(const std::vector<std::string>& names) {
  for (const std::string& name : names) entries_.push_back({.name = name});
}

void ObjectiveMetrics::Add(const std::string& name, double sum, double count) {
  const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& each) { return each.name == name; });
  SHOAL_CHECK(entry != entries_.end()) << "metric_names() lacks \"" << name << "\"";
  entry->sum += sum;
  entry->count += count;
}

std::vector<std::pair<std::string, double>> ObjectiveMetrics::Reduce(const DeviceMesh& mesh) const {
  std::vector<std::pair<std::string, double>> means;
  if (entries_.empty()) return means;
  Tensor sums = at::zeros({static_cast<int64_t>(entries_.size()), 2}, at::kDouble);
  double* values = sums.mutable_data_ptr<double>();
  for (size_t i = 0; mesh.reports_loss() && i < entries_.size(); ++i) {
    values[2 * i] = entries_[i].sum;
    values[2 * i + 1] = entries_[i].count;
  }
  mesh.control().AllReduce(sums);
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (values[2 * i + 1] != 0)
      means.emplace_back(entries_[i].name, values[2 * i] / values[2 * i + 1]);
  }
  return means;
}

}  // namespace shoal
