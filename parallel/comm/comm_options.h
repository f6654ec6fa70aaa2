// How a job's communicators behave; the `comm` section of the recipe and `run.deterministic`.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace shoal {

enum class CommTransport {
  kAuto,  // On one host shared memory, across hosts MPI's collectives; NCCL with a GPU a rank
  kMpi,   // MPI's own collectives everywhere; tensors on GPUs go through host memory
};

struct CommOptions {
  CommTransport transport = CommTransport::kAuto;
  // Sums in rank order. Shared memory always adds so: there it is the fastest way too.
  bool deterministic = true;
  // A collective that takes longer throws CommError naming the ranks that did not come.
  absl::Duration timeout = absl::Minutes(5);
  // MPI's own collectives work through larger tensors in chunks of so many bytes a rank; their
  // temporary memory is a few times this.
  int64_t chunk_bytes = int64_t{32} << 20;
};

}  // namespace shoal
