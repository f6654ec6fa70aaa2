#include "parallel/sharded_parameters.h"

#include <algorithm>
#include <array>

#include <ATen/ops/empty.h>

#include "core/status.h"

namespace shoal {
namespace {

// Where spec i of a block lives: which unit, and its place there.
struct Place {
  int unit;
  int index;
};

struct UnitPlan {
  std::vector<ParameterSpec> specs;
  bool trainable;
  int first_block;
  int last_block;
};

// Cuts the blocks' own weights into units (trainable and frozen apart) and resolves ties.
std::vector<UnitPlan> PlanUnits(const std::vector<BlockParameters>& blocks,
                                std::vector<std::vector<Place>>& places) {
  std::vector<UnitPlan> plans;
  places.resize(blocks.size());
  for (int b = 0; b < static_cast<int>(blocks.size()); ++b) {
    int unit_of[2] = {-1, -1};  // [trainable]
    for (size_t i = 0; i < blocks[b].specs.size(); ++i) {
      const ParameterSpec& spec = blocks[b].specs[i];
      if (blocks[b].ties[i]) {
        places[b].push_back({-1, -1});
        continue;
      }
      // The stages that hold a tied weight cut it alike: it is a unit of its own.
      int alone = -1;
      int& unit = spec.tied_across_stages ? alone : unit_of[spec.trainable];
      if (unit < 0) {
        unit = static_cast<int>(plans.size());
        plans.push_back(
            {.specs = {}, .trainable = spec.trainable, .first_block = b, .last_block = b});
      }
      places[b].push_back({unit, static_cast<int>(plans[unit].specs.size())});
      plans[unit].specs.push_back(spec);
    }
  }
  for (int b = 0; b < static_cast<int>(blocks.size()); ++b) {
    for (size_t i = 0; i < blocks[b].specs.size(); ++i) {
      const auto& tie = blocks[b].ties[i];
      if (!tie) continue;
      const Place owner = places[tie->block][tie->parameter];
      SHOAL_CHECK(owner.unit >= 0)
          << "a weight is tied to a tied weight: " << blocks[b].specs[i].name;
      places[b][i] = owner;
      plans[owner.unit].first_block = std::min(plans[owner.unit].first_block, b);
      plans[owner.unit].last_block = std::max(plans[owner.unit].last_block, b);
    }
  }
  return plans;
}

}  // namespace

ShardedParameters::ShardedParameters(const std::vector<BlockParameters>& blocks,
                                     const ZeroOptions& options, const ShareGroups& groups)
    : options_(options) {
  Communicator& comm = groups.shard;
  std::vector<std::vector<Place>> places;
  const std::vector<UnitPlan> plans = PlanUnits(blocks, places);

  // A block's trainable and frozen units are gathered together, so each kind has its own arena, as
  // has a unit beside them.
  const auto takes_turns = [](const UnitPlan& plan) {
    return plan.first_block == plan.last_block && !plan.specs[0].tied_across_stages;
  };
  std::array<int64_t, 2> largest = {0, 0};  // [trainable], of units that take turns
  for (const UnitPlan& plan : plans) {
    if (!takes_turns(plan)) continue;
    int64_t& size = largest[plan.trainable];
    size = std::max(size, FlatLayout(plan.specs, comm.size()).padded_numel());
  }
  const std::array<ShardedUnit::Arenas, 2> shared = {MakeArenas(largest[false], false, comm),
                                                     MakeArenas(largest[true], true, comm)};
  for (const UnitPlan& plan : plans) {
    ShardedUnit::Arenas arenas = shared[plan.trainable];
    if (!takes_turns(plan)) {
      arenas = MakeArenas(FlatLayout(plan.specs, comm.size()).padded_numel(), plan.trainable, comm);
    }
    units_.push_back(
        std::make_unique<ShardedUnit>(plan.specs, plan.trainable, options_, groups, arenas));
    uses_.push_back({plan.first_block, plan.last_block});
  }
  for (const std::vector<Place>& block : places) {
    BlockView view;
    for (const Place& place : block) {
      view.parameters.push_back(units_[place.unit]->parameters()[place.index]);
      view.units.push_back(place.unit);
    }
    std::sort(view.units.begin(), view.units.end());
    view.units.erase(std::unique(view.units.begin(), view.units.end()), view.units.end());
    blocks_.push_back(std::move(view));
  }
}

ShardedUnit::Arenas ShardedParameters::MakeArenas(int64_t numel, bool trainable,
                                                  Communicator& comm) {
  ShardedUnit::Arenas arenas;
  if (options_.stage == 3) {
    arenas.gathered = at::empty({numel}, options_.compute_dtype);
    arena_bytes_ += arenas.gathered.nbytes();
  }
  if (options_.stage >= 2 && trainable) {
    arenas.gradients = comm.AllocateRegistered(numel, options_.gradient_dtype);
    arena_bytes_ += arenas.gradients.nbytes();
  }
  return arenas;
}

std::span<const Parameter> ShardedParameters::BeginForward(int block) {
  for (int unit : blocks_[block].units) {
    if (uses_[unit].first_block == block) units_[unit]->Gather();
  }
  return blocks_[block].parameters;
}

void ShardedParameters::ZeroGradients(int block, int micro_batch) {
  for (int unit : blocks_[block].units) {
    if (uses_[unit].last_block == block)
      units_[unit]->ZeroGradients(/*first_micro_batch=*/micro_batch == 0);
  }
}

std::span<const Parameter> ShardedParameters::BeginBackward(int block) {
  for (int unit : blocks_[block].units) {
    if (uses_[unit].last_block == block) units_[unit]->Gather();
  }
  return blocks_[block].parameters;
}

void ShardedParameters::EndBackward(int block, int micro_batch) {
  for (int unit : blocks_[block].units) {
    if (uses_[unit].first_block != block) continue;
    units_[unit]->ReduceGradients({.first_micro_batch = micro_batch == 0,
                                   .last_micro_batch = micro_batch == options_.micro_batches - 1});
  }
}

void ShardedParameters::FinishGradients() {
  for (const auto& unit : units_) unit->SumTiedGradients();
}

void ShardedParameters::PublishWeights() {
  for (const auto& unit : units_) unit->PublishWeights();
}

void ShardedParameters::SyncFromMaster() {
  for (const auto& unit : units_) unit->SyncFromMaster();
}

std::vector<OptimizerSlice> ShardedParameters::optimizer_slices() const {
  std::vector<OptimizerSlice> slices;
  for (const auto& unit : units_) {
    if (unit->trainable()) slices.push_back(unit->optimizer_slice());
  }
  return slices;
}

int64_t ShardedParameters::num_trainable() const {
  int64_t total = 0;
  for (const auto& unit : units_) {
    if (!unit->trainable()) continue;
    for (const ParameterSpec& spec : unit->layout().specs()) {
      for (const ElementRun& run : RunsInWhole(spec, 0, spec.numel()))
        total += run.owned ? run.count : 0;
    }
  }
  return total;
}

int64_t ShardedParameters::num_padded() const {
  int64_t total = 0;
  for (const auto& unit : units_) total += unit->trainable() ? unit->layout().padded_numel() : 0;
  return total;
}

HeldBytes ShardedParameters::held_bytes() const {
  HeldBytes total{.gathered = arena_bytes_};
  for (const auto& unit : units_) {
    const HeldBytes held = unit->held_bytes();
    total.weights += held.weights;
    total.gradients += held.gradients;
    total.master_weights += held.master_weights;
  }
  return total;
}

}  // namespace shoal
