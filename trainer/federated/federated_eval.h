// Loss (and of classifiers accuracy) of the server's weights on held-out examples, dealt out over
// the groups by batches: the same bits on any number of groups.
#pragma once

#include <optional>

#include "trainer/engine.h"
#include "trainer/federated/example_set.h"

namespace shoal {

struct HeldOut {
  double loss = 0;                 // Mean over targets
  std::optional<double> accuracy;  // Share of targets that have the largest logit
};

struct HeldOutOptions {
  int64_t rows = 1;         // Of a batch and rank
  int64_t max_batches = 0;  // 0: all
  bool accuracy = false;
};

// Collective over all ranks. outer: the ranks of all groups in this rank's place.
absl::StatusOr<HeldOut> EvaluateHeldOut(Engine& engine, const ExampleSet& examples,
                                        Communicator& outer, const HeldOutOptions& options);

}  // namespace shoal
