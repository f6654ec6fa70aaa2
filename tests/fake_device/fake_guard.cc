// The fake device's current device, streams and events, and what libtorch asks of a backend.
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>

#include "core/status.h"
#include "tests/fake_device/fake_memory.h"
#include "tests/fake_device/fake_streams.h"

namespace shoal {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

struct CurrentDevice {
  DeviceIndex device = 0;
  std::array<c10::StreamId, kFakeDevices> streams = {};
};

CurrentDevice& Current() {
  thread_local CurrentDevice current;
  return current;
}

void CheckIndex(Device device) {
  TORCH_CHECK(device.is_privateuseone() && device.index() >= 0 && device.index() < kFakeDevices,
              "no fake device ", device);
}

// An event that knows on which device it was made: others may not record it, as with CUDA.
struct FakeEvent {
  Stream stream;
  int64_t behind;  // So much of what the stream has deferred

  void Await() const { FakeStreams::Get().Do(stream, behind); }
};

class FakeGuard final : public c10::impl::DeviceGuardImplInterface {
 public:
  DeviceType type() const override { return DeviceType::PrivateUse1; }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return FakeDevice(Current().device); }
  void setDevice(Device device) const override {
    CheckIndex(device);
    Current().device = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    Current().device = device.index();
  }
  DeviceIndex deviceCount() const noexcept override { return kFakeDevices; }

  Stream getStream(Device device) const override {
    const Device of = Full(device);
    return Stream(Stream::UNSAFE, of, Current().streams[of.index()]);
  }
  Stream getDefaultStream(Device device) const override {
    return Stream(Stream::UNSAFE, Full(device), 0);
  }
  Stream getStreamFromGlobalPool(Device device, bool) const override {
    return getNewStream(device, 0);
  }
  Stream getNewStream(Device device, int) const override {
    static std::atomic<c10::StreamId> last{0};
    return Stream(Stream::UNSAFE, Full(device), ++last);
  }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = getStream(stream.device());
    Current().streams[stream.device_index()] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(Stream stream) const override {
    return reinterpret_cast<void*>(static_cast<intptr_t>(stream.id()));
  }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override { CountFakeDeviceWait(); }
  void synchronizeDevice(DeviceIndex) const override { CountFakeDeviceWait(); }

  void record(void** event, const Stream& stream, DeviceIndex device,
              c10::EventFlag) const override {
    TORCH_CHECK(device == -1 || device == stream.device_index(), "event of device ", int(device),
                " recorded on stream of device ", int(stream.device_index()));
    auto* made = static_cast<FakeEvent*>(*event);
    TORCH_CHECK(made == nullptr || made->stream.device() == stream.device(),
                "event of another device recorded on ", stream);
    const FakeEvent now{stream, FakeStreams::Get().Deferred(stream)};
    if (made == nullptr)
      *event = new FakeEvent(now);
    else
      *made = now;
  }
  void block(void* event, const Stream&) const override { synchronizeEvent(event); }
  bool queryEvent(void* event) const override {
    synchronizeEvent(event);
    return true;
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) static_cast<FakeEvent*>(event)->Await();
  }
  void destroyEvent(void* event, DeviceIndex) const noexcept override {
    delete static_cast<FakeEvent*>(event);
  }
  double elapsedTime(void*, void*, DeviceIndex) const override { return 0; }

 private:
  Device Full(Device device) const {
    const Device full = device.has_index() ? device : getDevice();
    CheckIndex(full);
    return full;
  }
};

// Page-locked host memory: ordinary memory that is known by its addresses.
class PinnedAllocator final : public at::HostAllocator {
 public:
  static PinnedAllocator& Get() {
    static auto& allocator = *new PinnedAllocator;
    return allocator;
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* address = c10::alloc_cpu(std::max<size_t>(bytes, 1));
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_[static_cast<const std::byte*>(address)] = bytes;
    return {address, address, &Delete, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Delete; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool IsPinned(const void* address) {
    const auto* byte = static_cast<const std::byte*>(address);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto after = blocks_.upper_bound(byte);
    if (after == blocks_.begin()) return false;
    --after;
    return byte < after->first + after->second;
  }

  bool record_event(void*, void*, Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}

 private:
  static void Delete(void* address) {
    PinnedAllocator& allocator = Get();
    {
      const std::lock_guard<std::mutex> lock(allocator.mutex_);
      allocator.blocks_.erase(static_cast<const std::byte*>(address));
    }
    c10::free_cpu(address);
  }
  std::mutex mutex_;
  std::map<const std::byte*, size_t> blocks_;
};

class FakeHooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void init() const override {}
  DeviceIndex deviceCount() const override { return kFakeDevices; }
  void setCurrentDevice(DeviceIndex device) const override { guard_.setDevice(FakeDevice(device)); }
  DeviceIndex getCurrentDevice() const override { return guard_.getDevice().index(); }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    return guard_.exchangeDevice(FakeDevice(device)).index();
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return device < 0 ? getCurrentDevice() : exchangeDevice(device);
  }
  // Seeded with the others; operators that draw use the host's.
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    static const at::Generator generator = at::detail::createCPUGenerator();
    return generator;
  }
  Device getDeviceFromPtr(void* data) const override {
    return FakeDevice(FakeMemory::Get().DeviceOf(data));
  }
  bool isPinnedPtr(const void* data) const override {
    return PinnedAllocator::Get().IsPinned(data);
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &PinnedAllocator::Get(); }

 private:
  FakeGuard guard_;
};

const bool fake_backend_is_registered = [] {
  c10::register_privateuse1_backend("fake");
  at::RegisterPrivateUse1HooksInterface(new FakeHooks);
  at::setHostAllocator(DeviceType::PrivateUse1, &PinnedAllocator::Get());
  return true;
}();

C10_REGISTER_GUARD_IMPL(PrivateUse1, FakeGuard)

}  // namespace
}  // namespace shoal
