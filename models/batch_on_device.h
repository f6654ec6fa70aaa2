// A micro-batch, made in host memory, where it is computed with.
#pragma once

#include "core/batch.h"

namespace shoal {

// With copies on `device` of what operations read (see Batch), which nobody waits for: the same
// tensors where that is the host. Memory that is not pinned has been read when this returns.
Batch BatchOnDevice(const Batch& host, at::Device device);

}  // namespace shoal
