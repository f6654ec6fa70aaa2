#include "trainer/plan/schedule_shape.h"

#include <algorithm>

#include "core/status.h"
#include "parallel/pipeline/simulate.h"

namespace shoal {
namespace {

using enum Action::Kind;

// Micro-batches whose schedule shows what that of all does: start, end, and three rounds between.
int EnoughMicroBatches(int ranks, int micro_batches) {
  if (micro_batches <= 6 * ranks) return micro_batches;
  const int rounds = micro_batches / ranks, rest = micro_batches % ranks;
  return 3 * (ranks + (rest + rounds - 1) / rounds);  // Interleaved rounds are of equal size
}

bool HeadTurnsAtOnce(const Schedule& schedule) {
  const Schedule::Place head = schedule.PlaceOf(schedule.stages() - 1);
  const std::vector<Action>& actions = schedule.actions[head.rank];
  for (size_t i = 0; i < actions.size(); ++i) {
    const Action& action = actions[i];
    if (action.kind != kForward || action.chunk != head.chunk) continue;
    if (i + 1 == actions.size()) return false;
    if (actions[i + 1] != Action{kBackward, head.chunk, action.micro_batch}) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<ScheduleShape> ScheduleShape::Make(ScheduleKind kind, int ranks, int micro_batches,
                                                  int chunks) {
  ScheduleShape shape;
  const int laid_out = EnoughMicroBatches(ranks, micro_batches);
  shape.left_out_ = micro_batches - laid_out;
  SHOAL_ASSIGN_OR_RETURN(shape.schedule_, MakeSchedule(kind, ranks, laid_out, chunks));
  SHOAL_ASSIGN_OR_RETURN(const Simulation simulation, Simulate(shape.schedule_, {}));
  // A rank idles as long however many rounds there are.
  constexpr double kPassCosts = 3;  // ActionCosts' defaults: 1 forward, 2 backward
  const double busy = kPassCosts * chunks * laid_out;
  const double idle = std::max(0.0, simulation.total - busy);
  shape.bubble_ = idle / (idle + kPassCosts * chunks * micro_batches);
  shape.peaks_ = simulation.peak_activations;
  shape.peaks_to_input_half_ = simulation.peak_activations_to_input_half;
  shape.head_turns_at_once_ = HeadTurnsAtOnce(shape.schedule_);
  return shape;
}

int64_t ScheduleShape::PeakBytes(int rank, std::span<const int64_t> bytes,
                                 bool to_input_half) const {
  if (schedule_.chunks == 1) {
    const int peak = (to_input_half ? peaks_to_input_half_ : peaks_)[rank];
    // Only gpipe holds all micro-batches at once.
    return (peak + (schedule_.kind == ScheduleKind::kGpipe ? left_out_ : 0)) * bytes[0];
  }
  int64_t live = 0, peak = 0;
  const Action::Kind last_half = to_input_half ? kBackwardInput : kBackwardWeight;
  for (const Action& action : schedule_.actions[rank]) {
    if (action.kind == kForward)
      live += bytes[action.chunk];
    else if (action.kind == kBackward || action.kind == last_half)
      live -= bytes[action.chunk];
    peak = std::max(peak, live);
  }
  return peak;
}

}  // namespace shoal
