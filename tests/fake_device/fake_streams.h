// What streams of the fake device have still to do; see LazyFakeStreams.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include <c10/core/Stream.h>

#include "tests/fake_device/fake_device.h"

namespace shoal {

class FakeStreams {
 public:
  static FakeStreams& Get();

  // Of LazyFakeStreams that live.
  void AddLazy(int count) { lazy_ += count; }
  // Whether work of this stream may wait: not that of the stream that a thread begins with.
  bool Lazy(const c10::Stream& stream) const { return lazy_ > 0 && stream.id() != 0; }

  void Defer(const c10::Stream& stream, std::function<void()> work);
  // How much was deferred so far.
  int64_t Deferred(const c10::Stream& stream);
  // Does the first `count` that were ever deferred, all without it.
  void Do(const c10::Stream& stream, int64_t count = INT64_MAX);
  void DoAll(c10::DeviceIndex device);

 private:
  struct Queue {
    std::deque<std::function<void()>> work;
    int64_t done = 0;
  };
  void Do(Queue& queue, int64_t count);

  std::atomic<int> lazy_{0};
  std::mutex mutex_;
  std::map<std::pair<c10::DeviceIndex, c10::StreamId>, Queue> queues_;
};

}  // namespace shoal
