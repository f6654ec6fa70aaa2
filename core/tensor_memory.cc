#include "core/tensor_memory.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <utility>

#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include "core/status.h"

namespace shoal {
namespace {

std::atomic<int64_t> alive{0}, peak{0};
thread_local TensorMemorySource* source_of_this_thread = nullptr;

// What malloc gave for a tensor is found again when it is freed, so that no table is needed.
int64_t SizeOf(void* memory) { return static_cast<int64_t>(malloc_usable_size(memory)); }

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    TensorMemorySource* source = source_of_this_thread;
    if (source != nullptr && static_cast<int64_t>(bytes) >= source->least_bytes())
      return source->Allocate(static_cast<int64_t>(bytes));
    c10::DataPtr data = c10::GetDefaultCPUAllocator()->allocate(bytes);
    AddTensorBytes(SizeOf(data.get()));
    SHOAL_CHECK(
        data.compare_exchange_deleter(c10::GetDefaultCPUAllocator()->raw_deleter(), &Delete))
        << "libtorch's allocator frees in an unknown way";
    return data;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Delete; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void Delete(void* memory) {
    AddTensorBytes(-SizeOf(memory));
    c10::GetDefaultCPUAllocator()->raw_deleter()(memory);
  }
};

// Null: the device's allocator counts nothing, or has been asked for nothing yet.
c10::DeviceAllocator* CountingAllocatorOf(at::Device device) {
  auto* allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  return allocator != nullptr && allocator->initialized() ? allocator : nullptr;
}

}  // namespace

void CountTensorMemory() {
  static std::once_flag once;
  std::call_once(once, [] { c10::SetCPUAllocator(new CountingAllocator, /*priority=*/1); });
}

TensorMemoryScope::TensorMemoryScope(TensorMemorySource* source)
    : source_(source), outer_(std::exchange(source_of_this_thread, source)) {
  if (outer_ != nullptr) outer_->End();
  if (source_ != nullptr) source_->Begin();
}

TensorMemoryScope::~TensorMemoryScope() {
  if (source_ != nullptr) source_->End();
  source_of_this_thread = outer_;
  if (outer_ != nullptr) outer_->Begin();
}

void AddTensorBytes(int64_t bytes) {
  const int64_t now = alive += bytes;
  int64_t highest = peak;
  while (now > highest && !peak.compare_exchange_weak(highest, now)) {
  }
}

int64_t TensorBytes() { return alive; }

int64_t PeakTensorBytes(at::Device device) {
  if (device.is_cpu()) return peak;
  c10::DeviceAllocator* allocator = CountingAllocatorOf(device);
  if (allocator == nullptr) return 0;
  const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return allocator->getDeviceStats(device.index()).allocated_bytes[all].peak;
}

void ResetPeakTensorBytes(at::Device device) {
  if (device.is_cpu())
    peak = alive.load();
  else if (c10::DeviceAllocator* allocator = CountingAllocatorOf(device))
    allocator->resetPeakStats(device.index());
}

}  // namespace shoal
