// Communication beside computation.
//
// Of host memory: calls that a thread of the queue's own makes, in order. The communicators that
// posted work uses belong to that thread until Drain: a communicator is used by one thread at a
// time. Ranks must post the same collectives in the same order.
//
// Of a device: [Note: a stream beside] work on a device goes on by itself, so Post calls `work` at
// once, on a stream of the queue's own that first waits for what the current stream has been given;
// Wait makes the current stream wait for that work, not the caller. Memory: `work`, and so each
// tensor that it captures, is kept until its Wait; from then on whatever frees them comes after the
// work on the current stream. What `work` allocates belongs to the queue's stream, and is given out
// again only to later work, which waits for all that the current stream used it for before.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include "core/trace.h"

namespace shoal {

class CommQueue {
 public:
  // `device`: of the tensors that posted work moves, Communicator::device().
  explicit CommQueue(c10::Device device = c10::kCPU);
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
  void CallBeside(std::function<void()> work);
  void WaitBeside(Ticket ticket);

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

  // On a device; see [Note: a stream beside].
  struct Launched {
    Ticket ticket;
    std::function<void()> call;
    c10::Event end;
  };
  std::optional<c10::Stream> stream_;  // None: host memory
  std::deque<Launched> launched_;      // Not waited for

  std::thread thread_;  // Of host memory
};

}  // namespace shoal
