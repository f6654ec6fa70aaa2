#include "trainer/plan/offload_plan.h"

#include <algorithm>

#include "core/dtype.h"
#include "core/offload.h"

namespace shoal {
namespace {

// Of a unit, in whole pages.
struct UnitPages {
  int64_t weights = 0;  // That compute
  int64_t masters = 0;
  int64_t states = 0;
};

UnitPages PagesOf(const UnitSize& unit, const PlanJob& job, int shard) {
  const ZeroOptions& zero = job.zero;
  const int64_t part = unit.shard_numel(job.mesh);
  UnitPages pages;
  if (zero.stage == 3 && zero.offload_parameters == OffloadTo::kDisk && !unit.of_buffers)
    pages.weights = OffloadSpace::Rounded(part * ElementBytes(zero.compute_dtype));
  if (!unit.trainable || unit.of_buffers || zero.offload_optimizer != OffloadTo::kDisk)
    return pages;
  const int64_t owned = zero.stage == 0 ? unit.padded_numel(job.mesh) : part;
  pages.masters = OffloadSpace::Rounded(zero.master_copy_bytes(owned));
  ForStateTensors(unit, job, shard,
                  [&](int64_t bytes) { pages.states += OffloadSpace::Rounded(bytes); });
  return pages;
}

OffloadPlan PlanOfShard(const RankOutline& rank, const PlanJob& job, int shard) {
  OffloadPlan plan;
  const bool copies = job.zero.has_master_copy();
  int64_t round = 0, last_round = 0;
  size_t round_weights = 0;
  const UnitSize* first = nullptr;  // Of the round that has begun; null: none has
  const auto close = [&] {
    plan.update_buffer = std::max(plan.update_buffer, last_round + round);
    last_round = round;
    round = 0;
    round_weights = 0;
    first = nullptr;
  };
  for (const int place : rank.unit_order) {
    const UnitSize& unit = rank.units[place];
    const UnitPages pages = PagesOf(unit, job, unit.shard_of(shard, job.mesh));
    plan.weights += pages.weights;
    plan.master_weights += pages.masters;
    plan.optimizer += pages.states;
    plan.passes_buffer = std::max(plan.passes_buffer, pages.weights);
    plan.read += 2 * job.micro_batches() * pages.weights;  // A gather forward, a gather backward
    if (!unit.trainable || unit.of_buffers) continue;
    plan.read += pages.masters + pages.states + (copies ? 0 : pages.weights);
    plan.written += pages.masters + pages.states + pages.weights;
    // As ShardedOptimizer goes through the units.
    if (first != nullptr && (unit.wholes.empty() || unit.of_experts != first->of_experts)) close();
    if (first == nullptr) first = &unit;
    round += pages.masters + pages.states + pages.weights;
    round_weights += unit.wholes.size();
    const size_t ranks = static_cast<size_t>(unit.shards(job.mesh)) * job.mesh.tensor;
    if (unit.wholes.empty() || job.whole_rule->FillsRound(round_weights, ranks)) close();
  }
  if (first != nullptr) close();
  return plan;
}

}  // namespace

int DifferentShards(const std::vector<UnitSize>& units, const PlanJob& job) {
  const bool alike =
      std::none_of(units.begin(), units.end(), [](const UnitSize& u) { return !u.wholes.empty(); });
  return alike || job.zero.stage == 0 ? 1 : job.mesh.weight_shards();
}

void ForStateTensors(const UnitSize& unit, const PlanJob& job, int shard,
                     const std::function<void(int64_t bytes)>& visit) {
  const at::ScalarType master = job.zero.master_dtype();
  const bool holds_all = job.zero.stage == 0;
  const int64_t part = unit.shard_numel(job.mesh), padded = unit.padded_numel(job.mesh);
  const int64_t begin = holds_all ? 0 : shard * part, end = holds_all ? padded : begin + part;
  if (job.ema) visit((end - begin) * ElementBytes(master));
  const auto overlap = [](int64_t from, int64_t to, int64_t other, int64_t numel) {
    return std::max<int64_t>(0, std::min(to, other + numel) - std::max(from, other));
  };
  int64_t plain = unit.wholes.empty() ? end - begin : overlap(begin, end, 0, unit.numel);
  for (const UnitSize::Whole& whole : unit.wholes) {
    // Each shard of it is a tensor of its own.
    for (int64_t from = begin; from < end; from += part) {
      const int64_t numel = overlap(from, from + part, whole.offset, whole.numel);
      if (numel == 0) continue;
      plain -= numel;
      for (const WholeRule::State& state : job.whole_rule->element_states(whole.shape, master))
        visit(numel * ElementBytes(state.dtype));
    }
    for (const WholeRule::State& state : job.whole_rule->shared_states(whole.shape, master))
      visit(state.numel * ElementBytes(state.dtype));
  }
  for (int i = 0; i < job.optimizer_states; ++i) visit(plain * ElementBytes(master));
}

OffloadPlan OffloadPlanOf(const RankOutline& rank, const PlanJob& job) {
  OffloadPlan most;
  const int different = DifferentShards(rank.units, job);
  for (int shard = 0; shard < different; ++shard) {
    const OffloadPlan plan = PlanOfShard(rank, job, shard);
    if (shard == 0 || plan.held_bytes() > most.held_bytes()) most = plan;
  }
  return most;
}

}  // namespace shoal
