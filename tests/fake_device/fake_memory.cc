#include "tests/fake_device/fake_memory.h"

#include <execinfo.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include <c10/core/Allocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/status.h"

namespace shoal {
namespace {

constexpr size_t kUnit = 512;  // As of CUDA's allocator, so that alignment is the same
constexpr size_t kCanary = 64;
constexpr int kCanaryByte = 0xA5;
constexpr int kFreshByte = 0xFF;
constexpr size_t kFilled = 1 << 20;  // Of fresh memory, so that large blocks cost nothing
constexpr size_t kPage = 4096;
constexpr size_t kGivenBack = 64 * kPage;  // At least so much is handed to the kernel at once

void OnSegmentationFault(int signal, siginfo_t* info, void*) {
  if (FakeMemory::Get().Contains(info->si_addr)) {
    static constexpr char kText[] = "host code touched device memory\n";
    (void)!write(STDERR_FILENO, kText, sizeof(kText) - 1);
    void* calls[40];
    backtrace_symbols_fd(calls, backtrace(calls, 40), STDERR_FILENO);
  }
  ::signal(signal, SIG_DFL);
  raise(signal);
}

}  // namespace

FakeMemory& FakeMemory::Get() {
  static auto& memory = *new FakeMemory;
  return memory;
}

FakeMemory::FakeMemory() {
  constexpr size_t kAll = kBytes * kFakeDevices;
  file_ = memfd_create("fake_device", MFD_CLOEXEC);
  SHOAL_CHECK(file_ >= 0 && ftruncate(file_, kAll) == 0) << "no memory object for the fake device";
  void* device = mmap(nullptr, kAll, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  void* host = mmap(nullptr, kAll, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  SHOAL_CHECK(device != MAP_FAILED && host != MAP_FAILED) << "no addresses for the fake device";
  device_base_ = static_cast<std::byte*>(device);
  host_base_ = static_cast<std::byte*>(host);
}

bool FakeMemory::Contains(const void* address) const {
  return address >= device_base_ && address < device_base_ + kBytes * kFakeDevices;
}

int FakeMemory::DeviceOf(const void* address) const {
  SHOAL_CHECK(Contains(address)) << "not an address of the fake device";
  return static_cast<int>(OffsetOf(address) / kBytes);
}

void* FakeMemory::HostAddress(const void* address) const {
  if (address == nullptr) return nullptr;
  SHOAL_CHECK(Contains(address)) << "a tensor of the fake device lies in host memory";
  return host_base_ + OffsetOf(address);
}

void* FakeMemory::Allocate(size_t bytes, int device) {
  if (bytes == 0) return nullptr;
  SHOAL_CHECK(device >= 0 && device < kFakeDevices) << "fake device " << device;
  Part& part = parts_[device];
  const size_t size = (bytes + kCanary + kUnit - 1) / kUnit * kUnit;
  size_t offset;
  {
    const std::lock_guard<std::mutex> lock(part.mutex);
    const auto found = std::find_if(part.free.begin(), part.free.end(),
                                    [&](const auto& block) { return block.second >= size; });
    if (found != part.free.end()) {
      offset = found->first;
      const size_t left = found->second - size;
      part.free.erase(found);
      if (left > 0) part.free[offset + size] = left;
    } else {
      offset = part.end;
      TORCH_CHECK_WITH(OutOfMemoryError, offset + size <= kBytes, "fake device ", device,
                       " out of memory: ", bytes, " bytes asked for, ", part.in_use, " in use");
      part.end += size;
    }
    part.allocated[offset] = {size, bytes};
    part.in_use += bytes;
    part.peak = std::max(part.peak, part.in_use);
  }
  offset += device * kBytes;
  std::memset(host_base_ + offset, kFreshByte, std::min(bytes, kFilled));
  std::memset(host_base_ + offset + bytes, kCanaryByte, size - bytes);
  return device_base_ + offset;
}

void FakeMemory::Free(void* address) {
  if (address == nullptr) return;
  const int device = DeviceOf(address);
  Part& part = parts_[device];
  const size_t offset = OffsetOf(address) - device * kBytes;
  const std::lock_guard<std::mutex> lock(part.mutex);
  const auto found = part.allocated.find(offset);
  SHOAL_CHECK(found != part.allocated.end()) << "device memory freed twice or not from its start";
  const auto [size, bytes] = found->second;
  const auto* memory = static_cast<const unsigned char*>(HostAddress(address));
  for (size_t i = bytes; i < size; ++i) {
    SHOAL_CHECK(memory[i] == kCanaryByte)
        << "device memory written " << i - bytes << " bytes behind a block of " << bytes;
  }
  part.allocated.erase(found);
  part.in_use -= bytes;
  GiveBack(OffsetOf(address), size);

  auto block = part.free.emplace(offset, size).first;
  if (auto next = std::next(block); next != part.free.end() && offset + size == next->first) {
    block->second += next->second;
    part.free.erase(next);
  }
  if (block != part.free.begin()) {
    auto before = std::prev(block);
    if (before->first + before->second == block->first) {
      before->second += block->second;
      part.free.erase(block);
    }
  }
}

void FakeMemory::GiveBack(size_t offset, size_t bytes) {
  if (bytes < kGivenBack) {
    std::memset(host_base_ + offset, kFreshByte, bytes);
    return;
  }
  const size_t begin = (offset + kPage - 1) / kPage * kPage;
  const size_t end = (offset + bytes) / kPage * kPage;
  (void)!fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin, end - begin);
}

void FakeMemory::Open() {
  const std::lock_guard<std::mutex> lock(open_mutex_);
  if (open_++ > 0) return;
  SHOAL_CHECK(mprotect(device_base_, kBytes * kFakeDevices, PROT_READ | PROT_WRITE) == 0);
}

void FakeMemory::Close() {
  const std::lock_guard<std::mutex> lock(open_mutex_);
  if (--open_ > 0) return;
  SHOAL_CHECK(mprotect(device_base_, kBytes * kFakeDevices, PROT_NONE) == 0);
}

c10::CachingDeviceAllocator::DeviceStats FakeMemory::Stats(int device) {
  Part& part = parts_[device];
  const std::lock_guard<std::mutex> lock(part.mutex);
  c10::CachingDeviceAllocator::DeviceStats stats;
  c10::CachingAllocator::Stat& all = stats.allocated_bytes[0];
  all.current = static_cast<int64_t>(part.in_use);
  all.peak = static_cast<int64_t>(part.peak);
  stats.reserved_bytes[0].current = static_cast<int64_t>(part.end);
  return stats;
}

void FakeMemory::ResetPeak(int device) {
  Part& part = parts_[device];
  const std::lock_guard<std::mutex> lock(part.mutex);
  part.peak = part.in_use;
}

namespace {

// Gives from the current device.
class FakeAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device =
        c10::impl::VirtualGuardImpl(c10::DeviceType::PrivateUse1).getDevice();
    void* address = FakeMemory::Get().Allocate(bytes, device.index());
    return {address, address, &Delete, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Delete; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    const FakeMemory& memory = FakeMemory::Get();
    std::memcpy(memory.HostAddress(to), memory.HostAddress(from), bytes);
  }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    return FakeMemory::Get().Stats(device);
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override { FakeMemory::Get().ResetPeak(device); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    return {FakeMemory::kBytes - FakeBytesInUse(device), FakeMemory::kBytes};
  }

 private:
  static void Delete(void* address) { FakeMemory::Get().Free(address); }
};

const bool fake_allocator_is_set = [] {
  c10::SetAllocator(c10::DeviceType::PrivateUse1, new FakeAllocator);
  ReportTouchedDeviceMemory();
  return true;
}();

}  // namespace

void ReportTouchedDeviceMemory() {
  void* warm[1];
  backtrace(warm, 1);  // Its first call loads a library, which a handler may not
  struct sigaction action = {};
  action.sa_sigaction = &OnSegmentationFault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
  FakeMemory::Get();
}

void OpenFakeMemory() { FakeMemory::Get().Open(); }
void CloseFakeMemory() { FakeMemory::Get().Close(); }

size_t FakeBytesInUse(int index) {
  return static_cast<size_t>(FakeMemory::Get().Stats(index).allocated_bytes[0].current);
}

bool IsFakeAddress(const void* address) { return FakeMemory::Get().Contains(address); }

}  // namespace shoal
