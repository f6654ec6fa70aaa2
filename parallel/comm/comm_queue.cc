#include "parallel/comm/comm_queue.h"

#include <sys/prctl.h>

#include <chrono>
#include <optional>
#include <utility>

#include <ATen/core/grad_mode.h>

#include "parallel/comm/pending_sends.h"

namespace shoal {
namespace {

thread_local bool on_queue = false;

}  // namespace

CommQueue::CommQueue() : thread_([this] { Run(); }) {}

CommQueue::~CommQueue() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

CommQueue::Ticket CommQueue::Post(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    TraceLane* lane = TraceLane::Current();
    work_.push_back({std::move(work), lane ? lane->recorder() : nullptr});
  }
  changed_.notify_all();
  return ++posted_;
}

void CommQueue::Wait(Ticket ticket) {
  constexpr std::chrono::microseconds kWhileSendsWait(50);
  std::unique_lock lock(mutex_);
  std::optional<TraceSpan> span;
  if (done_ < ticket) span.emplace(TraceKind::kAwait, "await communication");
  while (done_ < ticket) {
    if (PendingSends::MoveOn())
      changed_.wait(lock);
    else
      changed_.wait_for(lock, kWhileSendsWait);
  }
  if (failure_) std::rethrow_exception(failure_);
}

bool CommQueue::IsThisThread() { return on_queue; }

void CommQueue::Run() {
  on_queue = true;
  prctl(PR_SET_TIMERSLACK, 1000);  // Nanoseconds: short sleeps end in time
  const at::NoGradGuard no_grad;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || !work_.empty(); });
    if (work_.empty()) return;
    const Work work = std::move(work_.front());
    work_.pop_front();
    if (!failure_) {
      lock.unlock();
      std::exception_ptr failure;
      try {
        const TraceThread thread(work.recorder);
        work.call();
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      failure_ = failure;
    }
    ++done_;
    changed_.notify_all();
  }
}

}  // namespace shoal
