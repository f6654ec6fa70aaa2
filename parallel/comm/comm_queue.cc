#include "parallel/comm/comm_queue.h"

#include <sys/prctl.h>

#include <chrono>
#include <optional>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "parallel/comm/pending_sends.h"

namespace shoal {
namespace {

thread_local bool on_queue = false;

}  // namespace

CommQueue::CommQueue(c10::Device device) {
  if (device.is_cpu())
    thread_ = std::thread([this] { Run(); });
  else
    stream_ = c10::impl::VirtualGuardImpl(device.type())
                  .getStreamFromGlobalPool(device, /*isHighPriority=*/true);
}

CommQueue::~CommQueue() {
  if (stream_) {
    try {
      WaitBeside(posted_);
    } catch (...) {  // The device has failed; so does what the caller asks of it next
    }
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

CommQueue::Ticket CommQueue::Post(std::function<void()> work) {
  if (stream_) {
    ++posted_;
    if (!failure_) CallBeside(std::move(work));
    return posted_;
  }
  {
    const std::lock_guard lock(mutex_);
    TraceLane* lane = TraceLane::Current();
    work_.push_back({std::move(work), lane ? lane->recorder() : nullptr});
  }
  changed_.notify_all();
  return ++posted_;
}

void CommQueue::CallBeside(std::function<void()> work) {
  try {
    c10::Event begin(stream_->device_type());
    begin.record(c10::impl::VirtualGuardImpl(stream_->device_type()).getStream(stream_->device()));
    begin.block(*stream_);
    const c10::StreamGuard beside(*stream_);
    const at::NoGradGuard no_grad;
    work();
    c10::Event end(stream_->device_type());
    end.record(*stream_);
    launched_.push_back({posted_, std::move(work), std::move(end)});
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void CommQueue::WaitBeside(Ticket ticket) {
  const c10::impl::VirtualGuardImpl device(stream_->device_type());
  for (; !launched_.empty() && launched_.front().ticket <= ticket; launched_.pop_front())
    launched_.front().end.block(device.getStream(stream_->device()));
}

void CommQueue::Wait(Ticket ticket) {
  if (stream_) {
    WaitBeside(ticket);
    if (failure_) std::rethrow_exception(failure_);
    return;
  }
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
