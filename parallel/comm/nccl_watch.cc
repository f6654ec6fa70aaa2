#include "parallel/comm/nccl_watch.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include <c10/core/impl/VirtualGuardImpl.h>

#include "absl/time/clock.h"

namespace shoal {
namespace {

constexpr absl::Duration kWhileInMotion = absl::Microseconds(200);

}  // namespace

NcclWatch::NcclWatch(c10::Device device, absl::Duration period, EndJob end_job)
    : device_(device), period_(period), end_job_(std::move(end_job)), thread_([this] { Run(); }) {}

NcclWatch::~NcclWatch() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void NcclWatch::Add(NcclWatched* watched) {
  const std::lock_guard lock(mutex_);
  watched_.push_back(watched);
}

void NcclWatch::Remove(NcclWatched* watched) {
  const std::lock_guard lock(mutex_);
  std::erase(watched_, watched);
}

void NcclWatch::Wake() {
  {
    const std::lock_guard lock(mutex_);
    awake_ = true;
  }
  changed_.notify_all();
}

void NcclWatch::Run() {
  // Else the thread's calls would begin a context on GPU 0, whichever the rank's is.
  c10::impl::VirtualGuardImpl(device_.type()).setDevice(device_);
  std::unique_lock lock(mutex_);
  while (!ending_) {
    awake_ = false;
    bool in_motion = false;
    std::string problem;
    for (NcclWatched* watched : watched_) {
      NcclWatched::Report report;
      try {
        report = watched->Look(absl::Now());
      } catch (const std::exception& error) {  // Of CUDA, whatever began it
        const std::string text = error.what();
        report.problem = text.substr(0, text.find('\n'));
      }
      in_motion |= report.in_motion;
      if (problem.empty()) problem = std::move(report.problem);
    }
    if (!problem.empty()) {
      lock.unlock();
      end_job_(problem);
      return;
    }
    changed_.wait_for(lock, absl::ToChronoMicroseconds(in_motion ? kWhileInMotion : period_),
                      [this] { return ending_ || awake_; });
  }
}

}  // namespace shoal
