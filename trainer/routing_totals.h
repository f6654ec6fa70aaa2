// What the routers of a model of experts did in a step, over all micro-batches and ranks.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/scalar_sum.h"
#include "models/block.h"
#include "models/model_config.h"
#include "parallel/device_mesh.h"

namespace shoal {

class RoutingTotals {
 public:
  // Of a model without experts: nothing is ever added.
  explicit RoutingTotals(const ModelConfig& config);

  void Add(int64_t layer, const RouterSums& sums);

  // Sums over the ranks: once, before what is below. Collective over the mesh.
  void Reduce(const DeviceMesh& mesh);

  // (experts) float64, of the layer: how often each was chosen, whether or not it had room.
  Tensor Chosen(int64_t layer) const { return sums_[layer].narrow(0, 0, experts_); }

  // What the log shows; empty for a model without experts.
  //   expert_load_max      choices of the expert that was chosen most, over the mean of its
  //                        layer's; of the layer where that is most
  //   router_balance_loss  the load-balancing loss (models/blocks/router.h): means over tokens
  //   router_z_loss        and layers, without their weights
  //   dropped_share        of the choices, those of experts that had no room
  std::vector<std::pair<std::string, double>> Figures() const;

 private:
  int64_t experts_, choices_;  // Of a layer; of a token
  Tensor sums_;                // (layers, experts + 3): RouterSums
  // By layer: RouterSums::balance and z, which go into sums_ when they are reduced.
  std::vector<ScalarSum> balance_, z_;
};

}  // namespace shoal
