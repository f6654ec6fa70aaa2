// A pipeline schedule on a virtual clock: its time, its bubble, its memory, its deadlocks.
//
// Each rank makes its actions one after another, each as soon as what it needs has arrived:
//   forward of stage v        the forward of v - 1
//   backward or input half    the stage's own forward, and the backward or input half of v + 1
//   weight half               the stage's own input half
// all of the same micro-batch. Sends never block.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "parallel/pipeline/schedule.h"

namespace shoal {

// Of one chunk and one micro-batch, in any unit of time. A whole backward costs both halves.
struct ActionCosts {
  double forward = 1;
  double backward_input = 1;
  double backward_weight = 1;
  double transfer = 0;  // From one rank to another; it keeps neither busy
};

struct Simulation {
  struct Span {
    double start;
    double end;
  };
  std::vector<std::vector<Span>> spans;  // As Schedule::actions
  double total = 0;                      // When the last action ends
  double bubble = 0;                     // Idle share of ranks * total, 0 .. 1

  // One entry a rank. Activations of one micro-batch in one chunk, from the start of the forward to
  // the end of the backward or of the weight half.
  std::vector<int> peak_activations;
  // The same with activations given back at the end of the input half already: for engines that
  // keep only what the weight half multiplies.
  std::vector<int> peak_activations_to_input_half;
  std::vector<int> messages;  // Sent to other ranks
};

// Errors (InvalidArgument): costs below zero; lists whose size the kind does not take; a chunk or
// micro-batch out of range; a forward or backward (whole, or both halves) that is missing or there
// twice; a deadlock, naming each rank that is stuck, at what, and what it waits for.
absl::StatusOr<Simulation> Simulate(const Schedule& schedule, const ActionCosts& costs);

}  // namespace shoal
