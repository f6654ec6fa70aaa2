#include "parallel/unit_plan.h"

#include <algorithm>

#include "core/status.h"

namespace shoal {

std::vector<UnitPlan> PlanUnits(const std::vector<BlockParameters>& blocks,
                                std::vector<std::vector<UnitPlace>>& places) {
  std::vector<UnitPlan> plans;
  places.resize(blocks.size());
  for (int b = 0; b < static_cast<int>(blocks.size()); ++b) {
    int unit_of[2][2] = {{-1, -1}, {-1, -1}};  // [of experts][trainable]
    int of_buffers = -1;
    for (size_t i = 0; i < blocks[b].specs.size(); ++i) {
      const ParameterSpec& spec = blocks[b].specs[i];
      if (blocks[b].ties[i]) {
        places[b].push_back({-1, -1});
        continue;
      }
      // The stages that hold a tied weight cut it alike: it is a unit of its own.
      int alone = -1;
      int& unit = spec.tied_across_stages ? alone
                  : spec.buffer           ? of_buffers
                                          : unit_of[spec.expert_ranks > 1][spec.trainable];
      if (unit < 0) {
        unit = static_cast<int>(plans.size());
        plans.push_back(
            {.specs = {}, .trainable = spec.has_gradient(), .first_block = b, .last_block = b});
      }
      places[b].push_back({unit, static_cast<int>(plans[unit].specs.size())});
      plans[unit].specs.push_back(spec);
    }
  }
  for (int b = 0; b < static_cast<int>(blocks.size()); ++b) {
    for (size_t i = 0; i < blocks[b].specs.size(); ++i) {
      const auto& tie = blocks[b].ties[i];
      if (!tie) continue;
      const UnitPlace owner = places[tie->block][tie->parameter];
      SHOAL_CHECK(owner.unit >= 0)
          << "a weight is tied to a tied weight: " << blocks[b].specs[i].name;
      places[b][i] = owner;
      plans[owner.unit].first_block = std::min(plans[owner.unit].first_block, b);
      plans[owner.unit].last_block = std::max(plans[owner.unit].last_block, b);
    }
  }
  return plans;
}

}  // namespace shoal
