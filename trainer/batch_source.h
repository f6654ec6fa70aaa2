// Where a task's batches come from. What a step sees is a function of its number alone, so that
// resuming costs nothing and any number of ranks sees the same global batch.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/batch.h"

namespace shoal {

class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // This rank's micro-batches of optimizer step `step` (from 0): as many on every rank, the same
  // number each step.
  virtual absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) = 0;
};

}  // namespace shoal
