#include "trainer/routing_totals.h"

#include <ATen/ATen.h>

namespace shoal {

RoutingTotals::RoutingTotals(const ModelConfig& config)
    : experts_(config.num_experts), choices_(config.experts_per_token) {
  if (experts_ == 0) return;
  sums_ = at::zeros({config.num_layers, experts_ + 3}, at::kDouble);
  balance_.resize(config.num_layers);
  z_.resize(config.num_layers);
}

void RoutingTotals::Add(int64_t layer, const RouterSums& sums) {
  Tensor row = sums_[layer];
  row.narrow(0, 0, experts_).add_(sums.chosen_E);
  row[experts_] += sums.dropped;
  balance_[layer].Add(sums.balance);
  z_[layer].Add(sums.z);
}

void RoutingTotals::Reduce(const DeviceMesh& mesh) {
  if (experts_ == 0) return;
  std::vector<ScalarSum> losses = balance_;
  losses.insert(losses.end(), z_.begin(), z_.end());
  const std::vector<double> read = ReadSums(losses);
  const Tensor of_layers = at::tensor(read, at::kDouble).view({2, -1}).t();
  sums_.narrow(1, experts_ + 1, 2).copy_(of_layers);
  // Tensor-parallel ranks all route the same tokens.
  if (mesh.tensor().rank() != 0) sums_.zero_();
  mesh.control().AllReduce(sums_);
}

std::vector<std::pair<std::string, double>> RoutingTotals::Figures() const {
  if (experts_ == 0) return {};
  const Tensor chosen_LE = sums_.narrow(1, 0, experts_);
  const auto total = [&](int64_t column) { return sums_.select(1, column).sum().item<double>(); };
  const double choices = std::max(1.0, chosen_LE.sum().item<double>()),
               tokens = choices / static_cast<double>(choices_);
  const Tensor load_L = std::get<0>(chosen_LE.max(1)) / chosen_LE.mean(1).clamp_min(1e-300);
  return {{"expert_load_max", load_L.max().item<double>()},
          {"router_balance_loss", total(experts_ + 1) / tokens},
          {"router_z_loss", total(experts_ + 2) / tokens},
          {"dropped_share", total(experts_) / choices}};
}

}  // namespace shoal
