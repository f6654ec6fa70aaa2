// The way of what lies anywhere in host memory to a device, through page-locked memory of a fixed
// size, so that the host fills one buffer while the device reads the other.
#pragma once

#include <array>
#include <cstdint>

#include <c10/core/Event.h>

#include "core/parameter.h"

namespace shoal {

class HostToDevice {
 public:
  static constexpr int64_t kBufferBytes = 16 << 20;

  // Of one thread.
  explicit HostToDevice(at::Device device);

  // to (n) on the device := from (n) in host memory, rounded to its dtype. Returns when `from` has
  // been read; what is queued on the current stream from then on finds it there.
  void Copy(const Tensor& from, const Tensor& to);

 private:
  struct Buffer {
    Tensor memory;    // (kBufferBytes) bytes
    c10::Event read;  // Its last content, by the device
  };

  at::Device device_;
  std::array<Buffer, 2> buffers_;
  int next_ = 0;
};

}  // namespace shoal
