#include "parallel/sharded_parameters.h"

#include <algorithm>
#include <array>

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/status.h"

namespace shoal {
namespace {

// The ranks that share the weights of a unit.
ShareGroups GroupsOfUnit(const UnitPlan& plan, const ShareGroups& groups) {
  if (!plan.of_experts()) return groups;
  SHOAL_CHECK(groups.expert_shard != nullptr) << plan.specs[0].name;
  return {.shard = *groups.expert_shard,
          .replicate = groups.replicate,
          .tensor = groups.tensor,
          .tied_stages = groups.tied_stages};
}

// What a unit is held under.
ZeroOptions OptionsOfUnit(const UnitPlan& plan, ZeroOptions options) {
  if (plan.of_buffers()) {
    options.stage = 0;
    options.compute_dtype = options.master_dtype();
    options.quantized_weights = options.quantized_gradients = false;
  }
  return options;
}

}  // namespace

ShardedParameters::ShardedParameters(const std::vector<BlockParameters>& blocks,
                                     const ZeroOptions& options, const ShareGroups& groups)
    : options_(options), device_(groups.shard.device()) {
  std::vector<std::vector<UnitPlace>> places;
  const std::vector<UnitPlan> plans = PlanUnits(blocks, places);

  const auto padded = [&](const UnitPlan& plan) {
    return FlatLayout(plan.specs, GroupsOfUnit(plan, groups).shard.size()).padded_numel();
  };
  int64_t largest[2][2] = {{0, 0}, {0, 0}};  // [of experts][trainable], of units that take turns
  for (const UnitPlan& plan : plans) {
    if (!plan.takes_turns()) continue;
    int64_t& size = largest[plan.of_experts()][plan.trainable];
    size = std::max(size, padded(plan));
  }
  using OfKind = std::array<std::array<ShardedUnit::Arenas, 2>, 2>;
  std::vector<OfKind> shared(options_.overlap ? 2 : 1);  // By the block's turn
  for (OfKind& arenas : shared) {
    for (const bool trainable : {false, true}) {
      arenas[false][trainable] = MakeArenas(largest[false][trainable], trainable, groups.shard);
      if (groups.expert_shard != nullptr)
        arenas[true][trainable] =
            MakeArenas(largest[true][trainable], trainable, *groups.expert_shard);
    }
  }
  int64_t packed_bytes = 0;
  for (const UnitPlan& plan : plans) {
    const int ranks = GroupsOfUnit(plan, groups).shard.size();
    packed_bytes = std::max(
        packed_bytes,
        OptionsOfUnit(plan, options_).packed_bytes(padded(plan) / ranks, ranks, plan.trainable));
  }
  const Tensor packed = at::empty({packed_bytes}, at::TensorOptions(at::kByte).device(device_));
  arena_bytes_ += packed_bytes;
  if (options_.updates_on_host()) host_to_device_ = std::make_unique<HostToDevice>(device_);
  for (const UnitPlan& plan : plans) {
    const ShareGroups of_unit = GroupsOfUnit(plan, groups);
    ShardedUnit::Arenas arenas =
        plan.takes_turns()
            ? shared[plan.first_block % shared.size()][plan.of_experts()][plan.trainable]
        : plan.of_buffers() ? ShardedUnit::Arenas()
                            : MakeArenas(padded(plan), plan.trainable, of_unit.shard);
    arenas.packed = packed;
    arenas.host_to_device = host_to_device_.get();
    units_.push_back(std::make_unique<ShardedUnit>(plan.specs, plan.trainable,
                                                   OptionsOfUnit(plan, options_), of_unit, arenas));
    uses_.push_back({plan.first_block, plan.last_block});
    names_.push_back(blocks[plan.first_block].name);
  }
  for (const std::vector<UnitPlace>& block : places) {
    BlockView view;
    for (const UnitPlace& place : block) {
      view.parameters.push_back(units_[place.unit]->parameters()[place.index]);
      view.units.push_back(place.unit);
    }
    std::sort(view.units.begin(), view.units.end());
    view.units.erase(std::unique(view.units.begin(), view.units.end()), view.units.end());
    blocks_.push_back(std::move(view));
  }
  gathers_.resize(units_.size(), 0);
  if (options_.overlap) queue_ = std::make_unique<CommQueue>(device_);
}

CommQueue::Ticket ShardedParameters::Do(std::function<void()> work) {
  if (queue_) return queue_->Post(std::move(work));
  work();
  return 0;
}

void ShardedParameters::Await(CommQueue::Ticket& ticket) {
  if (ticket > 0) queue_->Wait(ticket);
  ticket = 0;
}

void ShardedParameters::Gather(int unit) {
  if (options_.stage != 3 || gathers_[unit] > 0) return;  // Under way
  gathers_[unit] = Do([this, unit] {
    TraceSpan span(TraceKind::kOther, "gather weights");
    span.Label([&] { return names_[unit]; });
    units_[unit]->Gather();
  });
}

void ShardedParameters::GatherAhead(int next, int UnitUse::*place) {
  if (next < 0) return;
  for (int unit : blocks_[next].units) {
    if (uses_[unit].*place != next) continue;
    if (queue_)
      Gather(unit);
    else if (options_.stage == 3)
      units_[unit]->PrefetchShard();
  }
}

ShardedUnit::Arenas ShardedParameters::MakeArenas(int64_t numel, bool trainable,
                                                  Communicator& comm) {
  ShardedUnit::Arenas arenas;
  if (options_.stage == 3) {
    arenas.gathered =
        at::empty({numel}, at::TensorOptions(options_.compute_dtype).device(comm.device()));
    arena_bytes_ += arenas.gathered.nbytes();
  }
  if (options_.stage >= 2 && trainable) {
    arenas.gradients = comm.AllocateRegistered(numel, options_.gradient_dtype);
    arena_bytes_ += arenas.gradients.nbytes();
  }
  return arenas;
}

std::span<const Parameter> ShardedParameters::BeginForward(int block, int next) {
  for (int unit : blocks_[block].units) {
    if (uses_[unit].first_block == block) Gather(unit);
  }
  for (int unit : blocks_[block].units) Await(gathers_[unit]);
  GatherAhead(next, &UnitUse::first_block);
  return blocks_[block].parameters;
}

void ShardedParameters::ZeroGradients(int block, int micro_batch) {
  for (int unit : blocks_[block].units) {
    if (uses_[unit].last_block != block) continue;
    Await(reductions_[units_[unit]->gradient_buffer()]);
    units_[unit]->ZeroGradients(/*first_micro_batch=*/micro_batch == 0);
  }
}

std::span<const Parameter> ShardedParameters::BeginBackward(int block, int next) {
  for (int unit : blocks_[block].units) {
    if (uses_[unit].last_block == block) Gather(unit);
  }
  for (int unit : blocks_[block].units) Await(gathers_[unit]);
  GatherAhead(next, &UnitUse::last_block);
  return blocks_[block].parameters;
}

void ShardedParameters::EndBackward(int block, int micro_batch) {
  const ShardedUnit::MicroBatchPlace place{
      .first_micro_batch = micro_batch == 0,
      .last_micro_batch = micro_batch == options_.micro_batches - 1};
  for (int unit : blocks_[block].units) {
    if (uses_[unit].first_block != block) continue;
    units_[unit]->SumPartialGradients(place);
    reductions_[units_[unit]->gradient_buffer()] = Do([this, unit, place] {
      TraceSpan span(TraceKind::kOther, "reduce gradients");
      span.Label([&] { return names_[unit]; });
      units_[unit]->ReduceGradients(place);
    });
  }
}

void ShardedParameters::FinishGradients() {
  if (queue_) queue_->Drain();
  if (options_.updates_on_host()) {
    const c10::impl::VirtualGuardImpl device(device_.type());
    device.synchronizeStream(device.getStream(device_));
  }
  for (const auto& unit : units_) unit->SumTiedGradients();
}

void ShardedParameters::PublishWeights() {
  for (size_t unit = 0; unit < units_.size(); ++unit) {
    TraceSpan span(TraceKind::kOther, "publish weights");
    span.Label([&] { return names_[unit]; });
    units_[unit]->PublishWeights();
  }
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
        total += run.owned ? run.count * spec.expert_ranks : 0;
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
  for (const auto& unit : units_) total += unit->held_bytes();
  return total;
}

}  // namespace shoal
