// The memory of the fake device; see fake_device.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include <c10/core/CachingDeviceAllocator.h>

#include "tests/fake_device/fake_device.h"

namespace shoal {

// kFakeDevices parts of one range of addresses.
class FakeMemory {
 public:
  static constexpr size_t kBytes = size_t{8} << 30;  // Of a device
  static FakeMemory& Get();

  void* Allocate(size_t bytes, int device);
  void Free(void* address);

  bool Contains(const void* address) const;
  int DeviceOf(const void* address) const;
  // Where the device's own operators find what lies at a device address. nullptr for nullptr.
  void* HostAddress(const void* address) const;

  void Open();
  void Close();

  c10::CachingDeviceAllocator::DeviceStats Stats(int device);
  void ResetPeak(int device);

 private:
  FakeMemory();

  struct Part {
    std::mutex mutex;
    size_t end = 0;                                         // Nothing was ever given beyond it
    std::map<size_t, size_t> free;                          // Offset -> bytes, none adjacent
    std::map<size_t, std::pair<size_t, size_t>> allocated;  // Offset -> bytes, bytes asked for
    size_t in_use = 0;
    size_t peak = 0;
  };
  size_t OffsetOf(const void* address) const {
    return static_cast<const std::byte*>(address) - device_base_;
  }
  void GiveBack(size_t offset, size_t bytes);

  int file_ = -1;
  std::byte* device_base_ = nullptr;  // Nobody may touch
  std::byte* host_base_ = nullptr;    // The same memory, for the device's operators
  Part parts_[kFakeDevices];
  std::mutex open_mutex_;
  int open_ = 0;
};

void CountFakeDeviceWait();  // See FakeDeviceWaits()

}  // namespace shoal
