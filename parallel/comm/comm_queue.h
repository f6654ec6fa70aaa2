// Communication beside computation: calls that a thread of its own makes, in order.
//
// The communicators that posted work uses belong to the queue's thread until Drain: a communicator
// is used by one thread at a time. Ranks must post the same collectives in the same order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "core/trace.h"

namespace shoal {

class CommQueue {
 public:
  CommQueue();
  ~CommQueue();  // Work that was posted is done first
  CommQueue(const CommQueue&) = delete;
  CommQueue& operator=(const CommQueue&) = delete;

  using Ticket = int64_t;  // 0: of nothing; done
  Ticket Post(std::function<void()> work);
  // Until that work, and so all before it, is done. Throws what it threw; work after a failure is
  // not done. The waiting thread's own sends move on meanwhile (pending_sends.h).
  void Wait(Ticket ticket);
  void Drain() { Wait(posted_); }
  // Whether the caller is a queue's own thread, which leaves the core to the thread beside it where
  // it can.
  static bool IsThisThread();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  struct Work {
    std::function<void()> call;
    TraceRecorder* recorder;  // Of the thread that posted it; null: none
  };
  std::deque<Work> work_;
  Ticket posted_ = 0;  // Only the posting thread's
  Ticket done_ = 0;
  bool ending_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace shoal
