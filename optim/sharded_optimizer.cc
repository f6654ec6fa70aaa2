#include "optim/sharded_optimizer.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace shoal {
namespace {

struct Range {
  int64_t begin;  // Of the slice
  int64_t count;
  bool decay;
};

// Runs of a slice's elements with one decay setting.
std::vector<Range> DecayRanges(const OptimizerSlice& slice, bool decay_all) {
  std::vector<Range> ranges;
  for (const auto& part : slice.layout->Slices(slice.begin, slice.begin + slice.weights.numel())) {
    const bool decay = decay_all || slice.layout->specs()[part.parameter].decay;
    if (!ranges.empty() && ranges.back().decay == decay) {
      ranges.back().count += part.count;
    } else {
      ranges.push_back({part.offset - slice.begin, part.count, decay});
    }
  }
  return ranges;
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(std::unique_ptr<UpdateRule> rule, ShardedParameters& parameters,
                                   const Options& options)
    : rule_(std::move(rule)), parameters_(parameters) {
  for (OptimizerSlice& slice : parameters_.optimizer_slices()) {
    OwnedStates owned{.slice = slice, .states = {}, .segments = {}};
    for (size_t i = 0; i < rule_->state_names().size(); ++i) {
      owned.states.push_back(at::zeros_like(slice.weights));
    }
    for (const Range& range : DecayRanges(slice, options.decay_all)) {
      const auto cut = [&](const Tensor& t) { return t.narrow(0, range.begin, range.count); };
      UpdateOperands segment{
          .weights = cut(slice.weights),
          .gradients = cut(slice.gradients),
          .states = {},
          .compute_copy = slice.compute_copy.defined() ? cut(slice.compute_copy) : Tensor(),
          .decay = range.decay};
      for (const Tensor& state : owned.states) segment.states.push_back(cut(state));
      owned.segments.push_back(std::move(segment));
    }
    owned_.push_back(std::move(owned));
  }
}

void ShardedOptimizer::Step(const UpdateOptions& options) {
  at::NoGradGuard no_grad;
  for (OwnedStates& owned : owned_) {
    for (UpdateOperands& segment : owned.segments) rule_->Update(segment, options);
  }
  parameters_.PublishWeights();
}

std::vector<ShardedOptimizer::NamedPiece> ShardedOptimizer::Pieces(bool saving) const {
  std::vector<NamedPiece> pieces;
  const auto add = [&](const std::string& prefix, const FlatLayout& layout, int64_t flat_begin,
                       const Tensor& data) {
    for (const auto& [spec, whole, offset] : layout.RunsOf(flat_begin, flat_begin + data.numel())) {
      if (saving && !whole.owned) continue;
      pieces.push_back({.name = absl::StrCat(prefix, "/", spec.name),
                        .spec = &spec,
                        .begin = whole.first,
                        .data = data.narrow(0, offset, whole.count)});
    }
  };
  size_t trainable = 0;
  for (const auto& unit : parameters_.units()) {
    const FlatLayout& layout = unit->layout();
    // Stage 0 owns everything on every rank; each rank saves its shard of it.
    const int64_t shard_begin = unit->shard_begin();
    const auto select = [&](const Tensor& owned) {
      return saving ? owned.narrow(0, shard_begin - unit->owned_begin(), layout.shard_numel())
                    : owned;
    };
    const int64_t begin = saving ? shard_begin : unit->owned_begin();
    add("weights", layout, begin, select(unit->owned_weights()));
    if (!unit->trainable()) continue;
    const OwnedStates& owned = owned_[trainable++];
    for (size_t i = 0; i < owned.states.size(); ++i) {
      add(rule_->state_names()[i], layout, begin, select(owned.states[i]));
    }
  }
  return pieces;
}

std::vector<ShardedOptimizer::NamedPiece> ShardedOptimizer::PiecesToSave() const {
  return Pieces(true);
}
std::vector<ShardedOptimizer::NamedPiece> ShardedOptimizer::PiecesToLoad() const {
  return Pieces(false);
}

void ShardedOptimizer::ResetStates() {
  at::NoGradGuard no_grad;
  for (OwnedStates& owned : owned_) {
    for (Tensor& state : owned.states) state.zero_();
  }
}

std::vector<Tensor> ShardedOptimizer::State(const std::string& name) const {
  const auto names = rule_->state_names();
  const auto found = std::find(names.begin(), names.end(), name);
  SHOAL_CHECK(found != names.end()) << "the update rule keeps no \"" << name << "\"";
  std::vector<Tensor> views;
  for (const OwnedStates& owned : owned_) views.push_back(owned.states[found - names.begin()]);
  return views;
}

int64_t ShardedOptimizer::state_bytes() const {
  int64_t total = 0;
  for (const OwnedStates& owned : owned_) {
    for (const Tensor& state : owned.states) total += state.nbytes();
  }
  return total;
}

}  // namespace shoal
