// What blocks keep on a device for their backward passes, put aside in host memory or, from there,
// in files. The memory of a storage is taken away and another given to it later, so that all
// tensors over it, those that autograd saved among them, find their values again.
//
// Streams. Copies go to a stream beside the current one, which waits for them where it needs what
// they bring or the memory that they read; the host waits for none. What is put aside leaves the
// device's memory when the next is put aside or asked for, so that its copy has the time that the
// next block computes; what is asked for before that has never left. What goes to files is first
// in page-locked memory, and there the host waits for the copy and for the disk.
//
// In host memory: chunks of page-locked memory of 32 MiB, but for the last of each block, which is
// rounded up to a power of two (libtorch's allocator of such memory does). With files: those of one
// block at most, beside two blocks' in the memory of the space.
#pragma once

#include <cstdint>
#include <memory>

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include "core/activation_store.h"

namespace shoal {

class DeviceKept;

class DeviceActivations final : public ActivationStore {
 public:
  static constexpr int64_t kChunkBytes = 32 << 20;

  // `disk`: null: what is put aside stays in host memory; else the space outlives the store.
  DeviceActivations(at::Device device, OffloadSpace* disk);

  std::unique_ptr<KeptTensors> Make() override;
  int64_t bytes_to_host() const override { return bytes_to_host_; }
  int64_t bytes_to_device() const override { return bytes_to_device_; }

 private:
  friend class DeviceKept;

  c10::Stream current() const;
  // Calls `copies` on the stream beside, behind what the current stream was given. The event is
  // their end.
  template <class Copies>
  c10::Event Beside(const Copies& copies) const;
  // What waits for its copy leaves the device's memory.
  void Settle();

  const at::Device device_;
  OffloadSpace* const disk_;
  const c10::Stream beside_;
  DeviceKept* leaving_ = nullptr;  // Copied, or being copied, and still in the device's memory
  int64_t bytes_to_host_ = 0, bytes_to_device_ = 0;
};

}  // namespace shoal
