// A micro-batch where it is computed with.
#pragma once

#include <optional>

#include "core/batch.h"
#include "models/shared_rows.h"

namespace shoal {

// What operations read of a micro-batch, beside the host's own: the same tensors where the device
// is the host's.
struct DeviceBatch {
  const Batch* host;
  Batch batch;                       // See Batch
  std::optional<SharedRows> shared;  // What all blocks but attention run over; empty: all places
};

// `host` outlives the result.
DeviceBatch MoveToDevice(const Batch& host, const std::optional<SharedRows>& shared,
                         at::Device device);

}  // namespace shoal
