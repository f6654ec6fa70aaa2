// Which weights of a rank's blocks are kept, gathered and reduced together. Needs no memory and no
// communicator, so it can be asked of any machine.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/parameter.h"

namespace shoal {

// A block's weights: its own, and those that it borrows from another block (tied embeddings).
struct BlockParameters {
  struct Tie {
    int block;
    int parameter;
  };
  std::vector<ParameterSpec> specs;
  std::vector<std::optional<Tie>> ties;  // One a spec; set: the spec is that block's
  std::string name = {};                 // In traces
};

// One unit: a block's trainable weights, or its frozen ones; apart from them, those of experts that
// ranks share, and buffers.
struct UnitPlan {
  std::vector<ParameterSpec> specs;
  bool trainable;
  int first_block;  // Lowest and highest block that touch the unit
  int last_block;

  // Its ranks are those that hold the same experts.
  bool of_experts() const { return specs[0].expert_ranks > 1; }
  // Every rank holds it whole, under any ZeRO stage, in master precision.
  bool of_buffers() const { return specs[0].buffer; }
  // With the units of other blocks, in one buffer. A block's trainable and frozen units are
  // gathered together, so each kind has its own buffer, as has a unit beside them.
  bool takes_turns() const {
    return first_block == last_block && !specs[0].tied_across_stages && !of_buffers();
  }
};

// Where a weight of a block lives: which unit, and its place there.
struct UnitPlace {
  int unit;
  int index;
};

// Cuts the blocks' own weights into units (trainable, frozen, shared experts and buffers apart) and
// resolves ties. places[b][i] is of spec i of block b.
std::vector<UnitPlan> PlanUnits(const std::vector<BlockParameters>& blocks,
                                std::vector<std::vector<UnitPlace>>& places);

}  // namespace shoal
