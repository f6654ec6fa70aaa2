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

// Who looks after the memory of tensors that a thread makes.
class TensorMemorySource {
 public:
  virtual ~TensorMemorySource() = default;
  // Of those in host memory that are at least so large it is asked for the memory, and counts it;
  // they must be counted (CountTensorMemory).
  virtual int64_t least_bytes() const = 0;
  virtual c10::DataPtr Allocate(int64_t bytes) = 0;
  // It becomes the thread's; it is no longer. Once or in turns.
  virtual void Begin() {}
  virtual void End() {}
};

// While it lives, `source` is this thread's; null: none is, as before any.
class TensorMemoryScope {
 public:
  explicit TensorMemoryScope(TensorMemorySource* source);
  ~TensorMemoryScope();
  TensorMemoryScope(const TensorMemoryScope&) = delete;
  TensorMemoryScope& operator=(const TensorMemoryScope&) = delete;

 private:
  TensorMemorySource* source_;
  TensorMemorySource* outer_;
};

}  // namespace shoal
