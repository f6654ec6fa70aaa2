// What a pipeline schedule costs in time and memory, also where it is too long to lay out: with
// many micro-batches it repeats itself, so fewer stand for all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/pipeline/schedule.h"

namespace shoal {

class ScheduleShape {
 public:
  // Errors: a size that the schedule does not take.
  static absl::StatusOr<ScheduleShape> Make(ScheduleKind kind, int ranks, int micro_batches,
                                            int chunks);

  // Idle share of the step where all passes of all stages cost alike, a backward twice a forward.
  double bubble() const { return bubble_; }
  // The most that a rank holds at once, of `bytes` a micro-batch in each of its chunks, from their
  // forward to the end of their backward pass (of its input half, if asked).
  int64_t PeakBytes(int rank, std::span<const int64_t> bytes, bool to_input_half = false) const;
  // After the last stage's forward pass of a micro-batch comes the whole of its backward pass.
  bool head_turns_at_once() const { return head_turns_at_once_; }

 private:
  Schedule schedule_;  // Of so many micro-batches that all there is to see is seen
  // Micro-batches under way, by rank, to the end of the backward pass and of its input half.
  std::vector<int> peaks_, peaks_to_input_half_;
  int left_out_ = 0;  // Micro-batches of the real one beyond those
  double bubble_ = 0;
  bool head_turns_at_once_ = true;
};

}  // namespace shoal
