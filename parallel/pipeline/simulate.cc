#include "parallel/pipeline/simulate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status.h"

namespace shoal {
namespace {

using enum Action::Kind;

absl::Status CheckCosts(const ActionCosts& costs) {
  for (double cost : {costs.forward, costs.backward_input, costs.backward_weight, costs.transfer}) {
    if (std::isfinite(cost) && cost >= 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("costs of pipeline actions must be finite and not below 0, got ", cost));
  }
  return absl::OkStatus();
}

// Every forward and every backward of one rank is there once.
absl::Status CheckList(const Schedule& schedule, int rank) {
  const auto fault = [&](const Action& action, absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule of rank ", rank, ": ", Describe(action), " ", what));
  };
  std::vector<std::array<int, 4>> counts(schedule.chunks * schedule.micro_batches);
  const auto counts_of = [&](int chunk, int micro_batch) -> std::array<int, 4>& {
    return counts[chunk * schedule.micro_batches + micro_batch];
  };
  for (const Action& action : schedule.actions[rank]) {
    if (action.chunk < 0 || action.chunk >= schedule.chunks || action.micro_batch < 0 ||
        action.micro_batch >= schedule.micro_batches) {
      return fault(action, absl::StrCat("is out of range: there are ", schedule.chunks,
                                        " chunks and ", schedule.micro_batches, " micro-batches"));
    }
    auto& count = counts_of(action.chunk, action.micro_batch);
    if (++count[static_cast<int>(action.kind)] > 1) return fault(action, "is there twice");
    if (count[static_cast<int>(kBackward)] > 0 && (count[static_cast<int>(kBackwardInput)] > 0 ||
                                                   count[static_cast<int>(kBackwardWeight)] > 0)) {
      return fault(action, "is there twice: as a whole backward and as a half");
    }
  }
  for (int chunk = 0; chunk < schedule.chunks; ++chunk) {
    for (int i = 0; i < schedule.micro_batches; ++i) {
      const auto& count = counts_of(chunk, i);
      const auto has = [&](Action::Kind kind) { return count[static_cast<int>(kind)] > 0; };
      if (!has(kForward)) return fault({kForward, chunk, i}, "is missing");
      if (has(kBackward)) continue;
      if (!has(kBackwardInput) && !has(kBackwardWeight)) {
        return fault({kBackward, chunk, i}, "is missing");
      }
      for (Action::Kind half : {kBackwardInput, kBackwardWeight}) {
        if (!has(half)) return fault({half, chunk, i}, "is missing");
      }
    }
  }
  return absl::OkStatus();
}

class Clock {
 public:
  Clock(const Schedule& schedule, const ActionCosts& costs)
      : schedule_(schedule),
        costs_(costs),
        forward_ends_(schedule.stages() * schedule.micro_batches, kNotYet),
        backward_ends_(forward_ends_),
        spans_(schedule.ranks) {}

  absl::StatusOr<std::vector<std::vector<Simulation::Span>>> Run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < schedule_.ranks; ++rank) {
        while (Step(rank)) moved = true;
      }
    }
    SHOAL_RETURN_IF_ERROR(CheckAllDone());
    return std::move(spans_);
  }

 private:
  static constexpr double kNotYet = -1;

  struct Need {
    bool forward;  // Else the backward or input half
    int stage;
  };

  std::vector<Need> NeedsOf(int rank, const Action& action) const {
    const int stage = schedule_.StageOf(rank, action.chunk);
    if (action.kind == kBackwardWeight) return {{.forward = false, .stage = stage}};
    std::vector<Need> needs;
    if (action.kind == kForward) {
      if (stage > 0) needs.push_back({.forward = true, .stage = stage - 1});
      return needs;
    }
    needs.push_back({.forward = true, .stage = stage});
    if (stage + 1 < schedule_.stages()) needs.push_back({.forward = false, .stage = stage + 1});
    return needs;
  }

  double& EndOf(const Need& need, int micro_batch) {
    auto& ends = need.forward ? forward_ends_ : backward_ends_;
    return ends[need.stage * schedule_.micro_batches + micro_batch];
  }

  double CostOf(Action::Kind kind) const {
    switch (kind) {
      case kForward:
        return costs_.forward;
      case kBackward:
        return costs_.backward_input + costs_.backward_weight;
      case kBackwardInput:
        return costs_.backward_input;
      case kBackwardWeight:
        return costs_.backward_weight;
    }
    return 0;
  }

  // The rank's next action, or null at its end.
  const Action* NextOf(int rank) const {
    const auto& list = schedule_.actions[rank];
    return spans_[rank].size() < list.size() ? &list[spans_[rank].size()] : nullptr;
  }

  // Makes the rank's next action if what it needs is there.
  bool Step(int rank) {
    const Action* action = NextOf(rank);
    if (action == nullptr) return false;
    double start = spans_[rank].empty() ? 0 : spans_[rank].back().end;
    for (const Need& need : NeedsOf(rank, *action)) {
      const double end = EndOf(need, action->micro_batch);
      if (end == kNotYet) return false;
      const bool own = schedule_.PlaceOf(need.stage).rank == rank;
      start = std::max(start, own ? end : end + costs_.transfer);
    }
    const double end = start + CostOf(action->kind);
    spans_[rank].push_back({.start = start, .end = end});
    if (action->kind != kBackwardWeight) {
      const int stage = schedule_.StageOf(rank, action->chunk);
      EndOf({.forward = action->kind == kForward, .stage = stage}, action->micro_batch) = end;
    }
    return true;
  }

  absl::Status CheckAllDone() {
    std::vector<std::string> stuck;
    for (int rank = 0; rank < schedule_.ranks; ++rank) {
      const Action* action = NextOf(rank);
      if (action == nullptr) continue;
      for (const Need& need : NeedsOf(rank, *action)) {
        if (EndOf(need, action->micro_batch) != kNotYet) continue;
        const Schedule::Place place = schedule_.PlaceOf(need.stage);
        const std::string where = place.rank == rank ? "which comes later in its own list"
                                                     : absl::StrCat("on rank ", place.rank);
        stuck.push_back(absl::StrCat("rank ", rank, " at action ", spans_[rank].size(), ", ",
                                     Describe(*action), ", waits for the ",
                                     need.forward ? "forward" : "backward", " of stage ",
                                     need.stage, ", ", where));
        break;
      }
    }
    if (stuck.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("pipeline schedule has a deadlock: ", absl::StrJoin(stuck, "; ")));
  }

  const Schedule& schedule_;
  const ActionCosts& costs_;
  std::vector<double> forward_ends_;   // [stage][micro-batch]
  std::vector<double> backward_ends_;  // [stage][micro-batch], of the whole or the input half
  std::vector<std::vector<Simulation::Span>> spans_;
};

// A rank's actions follow one another, so that the order of its list is all that peaks depend on.
int PeakActivations(const std::vector<Action>& list, bool to_input_half) {
  int live = 0;
  int peak = 0;
  for (const Action& action : list) {
    if (action.kind == kForward) peak = std::max(peak, ++live);
    const Action::Kind last_half = to_input_half ? kBackwardInput : kBackwardWeight;
    if (action.kind == kBackward || action.kind == last_half) --live;
  }
  return peak;
}

int CountMessages(const Schedule& schedule, int rank) {
  int messages = 0;
  for (const Action& action : schedule.actions[rank]) {
    if (action.kind == kBackwardWeight) continue;
    const int to = schedule.StageOf(rank, action.chunk) + (action.kind == kForward ? 1 : -1);
    if (to < 0 || to >= schedule.stages()) continue;
    if (schedule.PlaceOf(to).rank != rank) ++messages;
  }
  return messages;
}

}  // namespace

absl::StatusOr<Simulation> Simulate(const Schedule& schedule, const ActionCosts& costs) {
  SHOAL_RETURN_IF_ERROR(CheckCosts(costs));
  SHOAL_RETURN_IF_ERROR(
      CheckScheduleSize(schedule.kind, schedule.ranks, schedule.micro_batches, schedule.chunks));
  if (static_cast<int>(schedule.actions.size()) != schedule.ranks) {
    return absl::InvalidArgumentError(absl::StrCat("schedule of ", schedule.ranks, " ranks has ",
                                                   schedule.actions.size(), " action lists"));
  }
  for (int rank = 0; rank < schedule.ranks; ++rank) {
    SHOAL_RETURN_IF_ERROR(CheckList(schedule, rank));
  }

  Simulation simulation;
  SHOAL_ASSIGN_OR_RETURN(simulation.spans, Clock(schedule, costs).Run());
  double busy = 0;
  for (int rank = 0; rank < schedule.ranks; ++rank) {
    for (const Simulation::Span& span : simulation.spans[rank]) busy += span.end - span.start;
    simulation.total = std::max(simulation.total, simulation.spans[rank].back().end);
    const auto& list = schedule.actions[rank];
    simulation.peak_activations.push_back(PeakActivations(list, /*to_input_half=*/false));
    simulation.peak_activations_to_input_half.push_back(
        PeakActivations(list, /*to_input_half=*/true));
    simulation.messages.push_back(CountMessages(schedule, rank));
  }
  const double rank_time = schedule.ranks * simulation.total;
  if (rank_time > 0) simulation.bubble = std::max(0.0, 1 - busy / rank_time);
  return simulation;
}

}  // namespace shoal
