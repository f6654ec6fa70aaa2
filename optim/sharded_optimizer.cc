#include "optim/sharded_optimizer.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

struct Range {
  int64_t begin;  // Of the unit
  int64_t count;
  bool decay;
  const ParameterSpec* settings;  // Of the first weight; the others' are the same
};

bool UpdatedAlike(const ParameterSpec& a, const ParameterSpec& b) {
  return a.learning_rate_multiplier == b.learning_rate_multiplier &&
         a.weight_decay == b.weight_decay;
}

// Runs of a slice's elements with one setting, those of whole updates left out.
std::vector<Range> PlainRanges(const OptimizerSlice& slice, bool decay_all, bool has_whole) {
  std::vector<Range> ranges;
  for (const auto& part : slice.layout->Slices(slice.begin, slice.begin + slice.numel())) {
    const ParameterSpec& spec = slice.layout->specs()[part.parameter];
    if (has_whole && spec.whole_update) continue;
    const bool decay = decay_all || spec.decay;
    const bool joins = !ranges.empty() && ranges.back().decay == decay &&
                       ranges.back().begin + ranges.back().count == part.offset &&
                       UpdatedAlike(*ranges.back().settings, spec);
    if (joins)
      ranges.back().count += part.count;
    else
      ranges.push_back({part.offset, part.count, decay, &spec});
  }
  return ranges;
}

template <class T>
void MoveMean(const Tensor& mean, const Tensor& weights, double decay) {
  T* means = mean.mutable_data_ptr<T>();
  const T* values = weights.const_data_ptr<T>();
  const T keep = static_cast<T>(decay), fresh = static_cast<T>(1 - decay);
  ParallelFor(mean.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) means[i] = keep * means[i] + fresh * values[i];
  });
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(std::unique_ptr<UpdateRule> rule, ShardedParameters& parameters,
                                   const Options& options)
    : rule_(std::move(rule)),
      whole_rule_(options.whole_rule),
      ema_decay_(options.ema_decay),
      parameters_(parameters) {
  for (const auto& unit : parameters_.units()) {
    if (!unit->trainable()) continue;
    OwnedStates& owned = owned_.emplace_back(OwnedStates{.unit = unit.get(),
                                                         .slice = unit->optimizer_slice(),
                                                         .states = {},
                                                         .segments = {},
                                                         .ema = {}});
    const auto specs = unit->layout().specs();
    const bool has_whole =
        whole_rule_ && std::any_of(specs.begin(), specs.end(),
                                   [](const ParameterSpec& spec) { return spec.whole_update; });
    if (has_whole) AddWhole(owned, options.decay_all);
    AddSegments(owned, options.decay_all);
    if (ema_decay_)
      owned.ema = Zeros(*unit, owned.slice.numel(), parameters_.options().master_dtype());
    owned.used = {{owned.slice.weights, OffloadAccess::kUpdate},
                  {owned.slice.compute_copy, OffloadAccess::kReplace}};
    ForStates(owned,
              [&](const Tensor& state) { owned.used.emplace_back(state, OffloadAccess::kUpdate); });
  }
}

template <class Visit>
void ShardedOptimizer::ForStates(const OwnedStates& owned, Visit&& visit) const {
  for (const Tensor& state : owned.states) visit(state);
  if (owned.ema.defined()) visit(owned.ema);
  if (owned.whole < 0) return;
  for (const WholeWeight& weight : wholes_[owned.whole].weights) {
    for (const Tensor& state : weight.shared) visit(state);
    for (const WholePart& part : weight.parts) {
      for (const Tensor& state : part.states) visit(state);
    }
  }
}

void ShardedOptimizer::AddSegments(OwnedStates& owned, bool decay_all) {
  const OptimizerSlice& slice = owned.slice;
  const bool has_whole = owned.whole >= 0;
  const std::vector<Range> ranges = PlainRanges(slice, decay_all, has_whole);
  int64_t numel = 0;
  for (const Range& range : ranges) numel += range.count;
  if (!has_whole) numel = slice.numel();
  for (size_t i = 0; i < rule_->state_names().size(); ++i)
    owned.states.push_back(Zeros(*owned.unit, numel, parameters_.options().master_dtype()));
  int64_t at = 0;
  for (const Range& range : ranges) {
    const int64_t begin = range.begin - slice.begin;
    Segment segment{.begin = range.begin,
                    .learning_rate_multiplier = range.settings->learning_rate_multiplier,
                    .master = slice.Master(begin, range.count),
                    .operands = {.weights = {},
                                 .gradients = slice.gradients.narrow(0, begin, range.count),
                                 .states = {},
                                 .compute_copy = {},
                                 .decay = range.decay,
                                 .weight_decay = range.settings->weight_decay}};
    for (const Tensor& state : owned.states) {
      segment.operands.states.push_back(state.narrow(0, has_whole ? at : begin, range.count));
    }
    at += range.count;
    owned.segments.push_back(std::move(segment));
  }
}

void ShardedOptimizer::AddWhole(OwnedStates& owned, bool decay_all) {
  const OptimizerSlice& slice = owned.slice;
  const FlatLayout& layout = *slice.layout;
  WholeUnit whole{.layout = &layout,
                  .device = slice.gradients.device(),
                  .master = parameters_.options().master_dtype(),
                  .holds_all = parameters_.options().stage == 0,
                  .shard = &owned.unit->shard_ranks(),
                  .tensor = owned.unit->tensor_ranks(),
                  .weights = {}};
  for (int i = 0; i < static_cast<int>(layout.specs().size()); ++i) {
    const ParameterSpec& spec = layout.specs()[i];
    if (!spec.whole_update) continue;
    WholeWeight& weight = whole.weights.emplace_back(WholeWeight{.parameter = i,
                                                                 .spec = &spec,
                                                                 .shape = spec.memory_shape(),
                                                                 .decay = decay_all || spec.decay,
                                                                 .parts = {},
                                                                 .shared = {}});
    for (const WholeRule::State& state : whole_rule_->shared_states(weight.shape, whole.master))
      weight.shared.push_back(Zeros(*owned.unit, state.numel, state.dtype));
    const int64_t end = slice.begin + slice.numel(), shard_numel = layout.shard_numel();
    for (int64_t shard = slice.begin / shard_numel; shard * shard_numel < end; ++shard) {
      for (const auto& part : layout.Slices(shard * shard_numel, (shard + 1) * shard_numel)) {
        if (part.parameter != i) continue;
        const int64_t begin = part.offset - slice.begin;
        WholePart& made = weight.parts.emplace_back(
            WholePart{.shard = static_cast<int>(shard),
                      .offset = part.offset,
                      .master = slice.Master(begin, part.count),
                      .gradients = slice.gradients.narrow(0, begin, part.count),
                      .states = {},
                      .runs = CountedRuns(spec, part.first, part.count, whole.tensor_rank())});
        for (const WholeRule::State& state :
             whole_rule_->element_states(weight.shape, whole.master))
          made.states.push_back(Zeros(*owned.unit, part.count, state.dtype));
      }
    }
  }
  owned.whole = static_cast<int>(wholes_.size());
  wholes_.push_back(std::move(whole));
}

void ShardedOptimizer::UpdateSegment(Segment& segment, const UpdateOptions& options) const {
  UpdateOptions scaled = options;
  scaled.learning_rate *= segment.learning_rate_multiplier;
  segment.master.ForPieces([&](int64_t first, const MasterRun& run) {
    const auto cut = [&](const Tensor& t) { return t.narrow(0, first, run.numel()); };
    UpdateOperands operands = segment.operands;
    operands.weights = run.Read();
    operands.gradients = cut(operands.gradients);
    for (Tensor& state : operands.states) state = cut(state);
    operands.compute_copy = run.rounded;
    rule_->Update(operands, scaled);
    run.Keep(operands.weights);
  });
}

void ShardedOptimizer::MoveEma(OwnedStates& owned) const {
  owned.master().ForPieces([&](int64_t first, const MasterRun& run) {
    Tensor mean = owned.ema.narrow(0, first, run.numel());
    if (!mean.is_cpu())
      mean.mul_(*ema_decay_).add_(run.Read(), 1 - *ema_decay_);
    else if (mean.scalar_type() == at::kDouble)
      MoveMean<double>(mean, run.Read(), *ema_decay_);
    else
      MoveMean<float>(mean, run.Read(), *ema_decay_);
  });
}

size_t ShardedOptimizer::RoundEnd(size_t begin) const {
  size_t end = begin + 1;
  if (owned_[begin].whole < 0) return end;
  const WholeUnit& first = wholes_[owned_[begin].whole];
  const size_t ranks = static_cast<size_t>(first.shard->size()) * first.tensor_size();
  for (size_t weights = first.weights.size();
       end < owned_.size() && !whole_rule_->FillsRound(weights, ranks); ++end) {
    if (owned_[end].whole < 0) break;
    const WholeUnit& next = wholes_[owned_[end].whole];
    if (next.shard != first.shard) break;
    weights += next.weights.size();
  }
  return end;
}

void ShardedOptimizer::UpdateRound(size_t begin, size_t end, const UpdateOptions& options) {
  for (size_t unit = begin; unit < end; ++unit) {
    for (Segment& segment : owned_[unit].segments) UpdateSegment(segment, options);
  }
  if (const int first = owned_[begin].whole; first >= 0) {
    const int last = owned_[end - 1].whole;
    whole_rule_->Update(std::span(wholes_).subspan(first, last + 1 - first), options);
  }
  for (size_t unit = begin; unit < end; ++unit) {
    if (ema_decay_) MoveEma(owned_[unit]);
    owned_[unit].unit->SendToDevice();
  }
}

void ShardedOptimizer::Step(const UpdateOptions& options) {
  at::NoGradGuard no_grad;
  for (size_t begin = 0, end = 0; begin < owned_.size(); begin = end) {
    end = RoundEnd(begin);
    OffloadHold hold;
    for (size_t unit = begin; unit < end; ++unit) {
      for (const auto& [tensor, access] : owned_[unit].used) hold.Add(tensor, access);
    }
    const size_t next_end = end < owned_.size() ? RoundEnd(end) : end;
    for (size_t unit = end; unit < next_end; ++unit) {
      for (const auto& [tensor, access] : owned_[unit].used) PrefetchOffloaded(tensor, access);
    }
    UpdateRound(begin, end, options);
  }
  parameters_.PublishWeights();
  if (OffloadSpace* offload = parameters_.options().offload) offload->Drain();
}

void ShardedOptimizer::AddWholePieces(const OwnedStates& owned, bool saving,
                                      std::vector<NamedPiece>& pieces) const {
  const WholeUnit& whole = wholes_[owned.whole];
  const int own_shard = whole.shard->rank();
  for (const WholeWeight& weight : whole.weights) {
    const ParameterSpec& spec = *weight.spec;
    const auto element_states = whole_rule_->element_states(weight.shape, whole.master);
    for (size_t i = 0; i < element_states.size(); ++i) {
      for (const WholePart& part : weight.parts) {
        if (saving && part.shard != own_shard) continue;
        for (const WholePart::Run& run : part.runs) {
          if (saving && !run.owned) continue;
          pieces.push_back({.name = absl::StrCat(element_states[i].name, "/", spec.name),
                            .spec = &spec,
                            .shape = weight.shape,
                            .begin = run.first,
                            .data = part.states[i].narrow(0, run.offset, run.count)});
        }
      }
    }
    // What every rank keeps, one saves.
    if (saving && (own_shard > 0 || whole.tensor_rank() > 0 || !spec.owned)) continue;
    const auto shared_states = whole_rule_->shared_states(weight.shape, whole.master);
    for (size_t i = 0; i < shared_states.size(); ++i) {
      pieces.push_back({.name = absl::StrCat(shared_states[i].name, "/", spec.name),
                        .spec = &spec,
                        .shape = {shared_states[i].numel},
                        .begin = 0,
                        .data = weight.shared[i]});
    }
  }
}

std::vector<ShardedOptimizer::NamedPiece> ShardedOptimizer::Pieces(bool saving) const {
  std::vector<NamedPiece> pieces;
  // `data`: flat elements of the unit from `flat_begin`. Stage 0 owns everything on every rank;
  // each rank saves its shard of it.
  const auto add = [&](const std::string& prefix, const ShardedUnit& unit, int64_t flat_begin,
                       const Tensor& data) {
    int64_t from = flat_begin, to = flat_begin + data.numel();
    if (saving) {
      from = std::max(from, unit.shard_begin());
      to = std::min(to, unit.shard_begin() + unit.layout().shard_numel());
    }
    if (from >= to) return;
    for (const auto& [spec, whole, offset] : unit.layout().RunsOf(from, to)) {
      if (saving && !whole.owned) continue;
      pieces.push_back({.name = absl::StrCat(prefix, "/", spec.name),
                        .spec = &spec,
                        .shape = spec.memory_shape(),
                        .begin = whole.first,
                        .data = data.narrow(0, from - flat_begin + offset, whole.count)});
    }
  };
  size_t trainable = 0;
  for (const auto& unit : parameters_.units()) {
    add("weights", *unit, unit->owned_begin(),
        saving ? unit->owned_weights() : unit->owned_weights_to_write());
    if (!unit->trainable()) continue;
    const OwnedStates& owned = owned_[trainable++];
    for (size_t i = 0; i < owned.states.size(); ++i) {
      for (const Segment& segment : owned.segments)
        add(rule_->state_names()[i], *unit, segment.begin, segment.operands.states[i]);
    }
    if (owned.whole >= 0) AddWholePieces(owned, saving, pieces);
    if (owned.ema.defined()) add(kEma, *unit, owned.slice.begin, owned.ema);
  }
  return pieces;
}

std::vector<ShardedOptimizer::NamedPiece> ShardedOptimizer::PiecesToSave() const {
  return Pieces(true);
}
std::vector<ShardedOptimizer::NamedPiece> ShardedOptimizer::PiecesToLoad() const {
  return Pieces(false);
}

void ShardedOptimizer::StartEma() {
  at::NoGradGuard no_grad;
  if (!ema_decay_) return;
  for (OwnedStates& owned : owned_) {
    OffloadHold hold(owned.slice.weights, OffloadAccess::kRead);
    hold.Add(owned.ema, OffloadAccess::kReplace);
    owned.master().ForPieces([&](int64_t first, const MasterRun& run) {
      owned.ema.narrow(0, first, run.numel()).copy_(run.Read());
    });
  }
}

void ShardedOptimizer::SwapEma() {
  at::NoGradGuard no_grad;
  SHOAL_CHECK(has_ema());
  for (OwnedStates& owned : owned_) {
    OffloadHold hold(owned.slice.weights, OffloadAccess::kUpdate);
    hold.Add(owned.slice.compute_copy, OffloadAccess::kReplace);
    hold.Add(owned.ema, OffloadAccess::kUpdate);
    owned.master().ForPieces([&](int64_t first, const MasterRun& run) {
      Tensor mean = owned.ema.narrow(0, first, run.numel());
      Tensor weights = run.Read();
      const Tensor before = weights.clone();
      weights.copy_(mean);
      run.RoundAndKeep(weights);
      mean.copy_(before);
    });
  }
  parameters_.SyncFromMaster();
}

void ShardedOptimizer::ResetStates() {
  at::NoGradGuard no_grad;
  for (OwnedStates& owned : owned_) {
    ForStates(owned, [&](const Tensor& state) {
      const OffloadHold hold(state, OffloadAccess::kReplace);
      state.zero_();
    });
  }
  StartEma();
}

std::vector<Tensor> ShardedOptimizer::State(const std::string& name) const {
  const auto names = rule_->state_names();
  const auto found = std::find(names.begin(), names.end(), name);
  SHOAL_CHECK(found != names.end()) << "the update rule keeps no \"" << name << "\"";
  SHOAL_CHECK(!whole_rule_) << "states of whole weights are not one view a slice";
  std::vector<Tensor> views;
  for (const OwnedStates& owned : owned_) views.push_back(owned.states[found - names.begin()]);
  return views;
}

int64_t ShardedOptimizer::StateBytes() const {
  int64_t total = 0;
  for (const OwnedStates& owned : owned_)
    ForStates(owned, [&](const Tensor& state) { total += state.nbytes(); });
  return total;
}

int64_t ShardedOptimizer::state_bytes() const {
  const ZeroOptions& options = parameters_.options();
  const bool elsewhere = options.updates_on_host() || options.offload_optimizer == OffloadTo::kDisk;
  return elsewhere ? 0 : StateBytes();
}

int64_t ShardedOptimizer::state_bytes_in_host() const {
  const ZeroOptions& options = parameters_.options();
  const bool there = options.updates_on_host() && options.offload_optimizer == OffloadTo::kHost;
  return there ? StateBytes() : 0;
}

int64_t ShardedOptimizer::state_bytes_on_disk() const {
  int64_t total = 0;
  if (parameters_.options().offload_optimizer != OffloadTo::kDisk) return total;
  for (const OwnedStates& owned : owned_)
    ForStates(owned, [&](const Tensor& state) { total += OffloadSpace::Rounded(state.nbytes()); });
  return total;
}

}  // namespace shoal
