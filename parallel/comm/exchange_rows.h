// An all-to-all in which every pair of ranks has its own number of rows.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/comm/communicator.h"

namespace shoal {

// in: (sum of sent, ...) contiguous, sent[j] rows for rank j, end to end. Returns (sum of received,
// ...), received[j] rows from rank j, end to end; received[j] on rank i is sent[i] on rank j. Sends
// rows to other ranks only, and nothing where there are none: the sum over j != rank() of sent[j]
// rows in as many messages at most. Collective.
at::Tensor ExchangeRows(Communicator& comm, const at::Tensor& in, std::span<const int64_t> sent,
                        std::span<const int64_t> received);

}  // namespace shoal
