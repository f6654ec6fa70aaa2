// Bytes of tensors in host memory, counted where libtorch allocates them. Of the process: rank
// threads share one count. A device's are counted by its own allocator.
#pragma once

#include <cstdint>

#include <c10/core/Allocator.h>

namespace shoal {

// From here on tensors are counted. Before the first is made: main() does. A second call is none.
void CountTensorMemory();

// Counts tensors whose memory comes from elsewhere (shared segments); negative: they are gone.
void AddTensorBytes(int64_t bytes);

int64_t TensorBytes();  // Alive now
// The most in the device's memory since the last reset; 0 where nothing is counted.
int64_t PeakTensorBytes(at::Device device = at::kCPU);
void ResetPeakTensorBytes(at::Device device = at::kCPU);

// Where large tensors that a thread makes get their memory; it counts it.
class TensorMemorySource {
 public:
  virtual ~TensorMemorySource() = default;
  virtual int64_t least_bytes() const = 0;  // Of a large one
  virtual c10::DataPtr Allocate(int64_t bytes) = 0;
};

// While it lives, `source` is this thread's; null: none is, as before any. Tensors must be counted.
class TensorMemoryScope {
 public:
  explicit TensorMemoryScope(TensorMemorySource* source);
  ~TensorMemoryScope();
  TensorMemoryScope(const TensorMemoryScope&) = delete;
  TensorMemoryScope& operator=(const TensorMemoryScope&) = delete;

 private:
  TensorMemorySource* outer_;
};

}  // namespace shoal
