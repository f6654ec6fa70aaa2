// Pipeline schedules as pure action lists: which passes each pipeline rank makes, in which order.
//
// The model is cut into stages v = 0 .. ranks * chunks - 1; each rank holds `chunks` of them. An
// engine walks its rank's list and waits, before an action, for the one message that it needs;
// simulate.h does the same on a virtual clock. Sends must not block: lists are free of deadlock
// only where a rank may send and go on.
//
//   gpipe             Huang et al. 2019, "GPipe": all forwards, then all backwards
//   1f1b              Narayanan et al. 2019, "PipeDream", flushed every step
//   interleaved_1f1b  Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU
//                     Clusters Using Megatron-LM", section 2.2
//   zb_h1             Qi et al. 2023, "Zero Bubble Pipeline Parallelism", section 2.2
//   zbv               Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", V-shape with
//                     the activation memory of 1F1B
//
// In every list the forwards, the backwards (whole or input halves) and the weight halves of one
// chunk each come in the order of micro-batches: gradients are summed in the order of plain
// gradient accumulation.
//
// From one rank to another, activations are sent in the order in which they are wanted, and so are
// gradients; but an activation may be wanted before a gradient that was sent earlier (zbv,
// interleaved_1f1b): the two take a channel, or a tag, each.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

enum class ScheduleKind { kGpipe, k1F1B, kInterleaved1F1B, kZbH1, kZbV };

// "gpipe", "1f1b", "interleaved_1f1b", "zb_h1", "zbv".
absl::string_view NameOf(ScheduleKind kind);

struct Action {
  enum class Kind {
    kForward,
    kBackward,        // The whole backward pass
    kBackwardInput,   // Its half that makes the gradient of the input, wanted by the stage before
    kBackwardWeight,  // Its half that makes the gradients of the weights, wanted by no other stage
  };
  Kind kind;
  int chunk;  // 0 .. chunks - 1, among the stages of its rank
  int micro_batch;

  bool operator==(const Action&) const = default;
};

// "input half of chunk 0, micro-batch 3".
std::string Describe(const Action& action);

struct Schedule {
  struct Place {
    int rank;
    int chunk;
    bool operator==(const Place&) const = default;
  };

  ScheduleKind kind;
  int ranks;
  int micro_batches;
  int chunks;                                // A rank's
  std::vector<std::vector<Action>> actions;  // One list a pipeline rank

  int stages() const { return ranks * chunks; }
  // zbv: chunk 0 goes down the ranks and chunk 1 comes back up, so that rank 0 has the first and
  // the last stage. Else: v = chunk * ranks + rank.
  int StageOf(int rank, int chunk) const;
  Place PlaceOf(int stage) const;
};

// OK if there is a schedule of this kind and size, else InvalidArgument: a size below 1, or a
// number of chunks that the kind does not take (zbv: 2, interleaved_1f1b: any, others: 1).
absl::Status CheckScheduleSize(ScheduleKind kind, int ranks, int micro_batches, int chunks);

// Any number of micro-batches will do. gpipe, 1f1b and interleaved_1f1b make whole backward passes,
// zb_h1 and zbv make halves. Errors: those of CheckScheduleSize.
absl::StatusOr<Schedule> MakeSchedule(ScheduleKind kind, int ranks, int micro_batches, int chunks);

}  // namespace shoal
