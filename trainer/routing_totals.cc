#include "trainer/routing_totals.h"

#include <ATen/ATen.h>

namespace shoal {

RoutingTotals::RoutingTotals(const ModelConfig& config)
    : experts_(config.num_experts), choices_(config.experts_per_token) {
  if (experts_ > 0) sums_ = at::zeros({config.num_layers, experts_ + 3}, at::kDouble);
}

void RoutingTotals::Add(int64_t layer, const RouterSums& sums) {
  Tensor row = sums_[layer];
  row.narrow(0, 0, experts_).add_(sums.chosen_E);
  row[experts_] += sums.dropped;
  row[experts_ + 1] += sums.balance;
  row[experts_ + 2] += sums.z;
}

std::vector<std::pair<std::string, double>> RoutingTotals::Reduce(const DeviceMesh& mesh) const {
  if (experts_ == 0) return {};
  // Tensor-parallel ranks all route the same tokens.
  Tensor sums = mesh.tensor().rank() == 0 ? sums_.clone() : at::zeros_like(sums_);
  mesh.control().AllReduce(sums);
  const Tensor chosen_LE = sums.narrow(1, 0, experts_);
  const auto total = [&](int64_t column) { return sums.select(1, column).sum().item<double>(); };
  const double choices = std::max(1.0, chosen_LE.sum().item<double>()),
               tokens = choices / static_cast<double>(choices_);
  const Tensor load_L = std::get<0>(chosen_LE.max(1)) / chosen_LE.mean(1).clamp_min(1e-300);
  return {{"expert_load_max", load_L.max().item<double>()},
          {"router_balance_loss", total(experts_ + 1) / tokens},
          {"router_z_loss", total(experts_ + 2) / tokens},
          {"dropped_share", total(experts_) / choices}};
}

}  // namespace shoal
