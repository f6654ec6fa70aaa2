#include "tests/fake_device/fake_streams.h"

namespace shoal {

FakeStreams& FakeStreams::Get() {
  static auto& streams = *new FakeStreams;
  return streams;
}

void FakeStreams::Defer(const c10::Stream& stream, std::function<void()> work) {
  const std::lock_guard<std::mutex> lock(mutex_);
  queues_[{stream.device_index(), stream.id()}].work.push_back(std::move(work));
}

int64_t FakeStreams::Deferred(const c10::Stream& stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto queue = queues_.find({stream.device_index(), stream.id()});
  if (queue == queues_.end()) return 0;
  return queue->second.done + static_cast<int64_t>(queue->second.work.size());
}

void FakeStreams::Do(Queue& queue, int64_t count) {
  for (; !queue.work.empty() && queue.done < count; ++queue.done) {
    queue.work.front()();
    queue.work.pop_front();
  }
}

void FakeStreams::Do(const c10::Stream& stream, int64_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto queue = queues_.find({stream.device_index(), stream.id()});
  if (queue != queues_.end()) Do(queue->second, count);
}

void FakeStreams::DoAll(c10::DeviceIndex device) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [stream, queue] : queues_) {
    if (stream.first == device) Do(queue, INT64_MAX);
  }
}

LazyFakeStreams::LazyFakeStreams() { FakeStreams::Get().AddLazy(1); }

LazyFakeStreams::~LazyFakeStreams() {
  FakeStreams::Get().AddLazy(-1);
  for (int device = 0; device < kFakeDevices; ++device)
    FakeStreams::Get().DoAll(static_cast<c10::DeviceIndex>(device));
}

}  // namespace shoal
