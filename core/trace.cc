#include "core/trace.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace shoal {

const char* NameOf(TraceKind kind) {
  static constexpr const char* kNames[kNumTraceKinds] = {
      "matmul",    "attention", "norm",          "activation", "cross entropy", "embedding",
      "optimizer", "other",     "communication", "waiting",    "awaiting"};
  return kNames[static_cast<int>(kind)];
}

int64_t TraceNow() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void TraceLane::Open(TraceKind kind, const char* name, const TraceDetail& detail) {
  const auto index = static_cast<int32_t>(events_.size());
  events_.push_back({.begin_ns = 0,
                     .end_ns = 0,
                     .inside_ns = 0,
                     .parent = open_,
                     .kind = kind,
                     .name = name,
                     .label = {},
                     .detail = detail});
  open_ = index;
  events_.back().begin_ns = TraceNow();
}

void TraceLane::Close() {
  TraceEvent& event = events_[open_];
  event.end_ns = TraceNow();
  open_ = event.parent;
  if (open_ >= 0) events_[open_].inside_ns += event.end_ns - event.begin_ns;
}

void TraceRecorder::Begin() {
  SHOAL_CHECK(lanes_.empty() && TraceLane::current_ == nullptr) << "a thread is recorded once";
  TraceLane::current_ = LaneOfThisThread();
  TraceLane::current_->Open(TraceKind::kOther, "recorded", {});
  recording_ = true;
}

void TraceRecorder::End() {
  if (!recording_) return;
  recording_ = false;
  TraceLane* lane = lanes_.front().second.get();
  SHOAL_CHECK(TraceLane::current_ == lane && lane->open_ == 0) << "spans are open";
  lane->Close();
  TraceLane::current_ = nullptr;
}

TraceLane* TraceRecorder::LaneOfThisThread() {
  const std::lock_guard lock(mutex_);
  const std::thread::id thread = std::this_thread::get_id();
  for (const auto& [id, lane] : lanes_) {
    if (id == thread) return lane.get();
  }
  const size_t place = lanes_.size();
  const std::string name = place == 0   ? "compute"
                           : place == 1 ? "communication"
                                        : absl::StrCat("communication ", place);
  return lanes_.emplace_back(thread, std::make_unique<TraceLane>(this, name)).second.get();
}

std::vector<const TraceLane*> TraceRecorder::lanes() const {
  std::vector<const TraceLane*> lanes;
  for (const auto& [id, lane] : lanes_) lanes.push_back(lane.get());
  return lanes;
}

}  // namespace shoal
