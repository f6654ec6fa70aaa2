// Bytes of tensors in host memory, counted where libtorch allocates them. Of the process: rank
// threads share one count.
#pragma once

#include <cstdint>

namespace shoal {

// From here on tensors are counted. Once, before the first is made: main() does.
void CountTensorMemory();

// Counts tensors whose memory comes from elsewhere (shared segments); negative: they are gone.
void AddTensorBytes(int64_t bytes);

int64_t TensorBytes();      // Alive now
int64_t PeakTensorBytes();  // The most since the last reset; 0 where nothing is counted
void ResetPeakTensorBytes();

}  // namespace shoal
