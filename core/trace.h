// What a rank's threads do and when. Spans nest; each thread that is recorded has a lane of them.
//
//   TraceRecorder recorder;
//   recorder.Begin();                                       // This thread's lane, "compute"
//   {
//     TraceSpan span(TraceKind::kMatMul, "matmul", {.flops = 2.0 * m * n * k});
//     ...
//   }
//   recorder.End();                                         // recorder.lanes() tells
//
// Where nothing is recorded a span costs one branch on a thread's own pointer. That pointer is the
// one thing that is not handed down as an argument: autograd calls operations from where no
// argument reaches.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace shoal {

// What the time of a span, less that of the spans inside it, was spent on.
enum class TraceKind : uint8_t {
  kMatMul,
  kAttention,
  kNorm,
  kActivation,  // Non-linearities, rotary positions, dropout
  kCrossEntropy,
  kEmbedding,
  kOptimizer,
  kOther,  // What no kernel's span covers: additions, copies, autograd, data, files
  kMove,   // Bytes between ranks, and their sums
  kWait,   // For another rank
  kAwait,  // For this rank's own communication lane
};
inline constexpr int kNumTraceKinds = 11;
// "matmul", "cross entropy", ...
const char* NameOf(TraceKind kind);

// Text is of static storage.
struct TraceDetail {
  double flops = 0;
  int64_t bytes = 0;
  const char* axis = nullptr;  // Of the mesh
  int stage = -1;              // Of the pipeline
  int micro_batch = -1;
};

struct TraceEvent {
  int64_t begin_ns, end_ns;  // TraceNow()
  int64_t inside_ns;         // Of the spans inside
  int32_t parent;            // Index of the span around it; -1: none
  TraceKind kind;
  const char* name;
  std::string label;  // What it is of: "layer 3". Empty: see the span around it
  TraceDetail detail;

  int64_t self_ns() const { return end_ns - begin_ns - inside_ns; }
};

// The monotonic clock, in nanoseconds; the same for all processes of a host.
int64_t TraceNow();

class TraceRecorder;

// Of one thread. A span comes after the one around it, in the order in which they began.
class TraceLane {
 public:
  TraceLane(TraceRecorder* recorder, std::string name)
      : recorder_(recorder), name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  const std::vector<TraceEvent>& events() const { return events_; }

  // Where this thread's spans go; null: nowhere.
  static TraceLane* Current() { return current_; }
  TraceRecorder* recorder() const { return recorder_; }

  void Open(TraceKind kind, const char* name, const TraceDetail& detail);
  void Close();
  void Label(std::string label) { events_[open_].label = std::move(label); }

 private:
  friend class TraceRecorder;
  friend class TraceThread;
  static inline thread_local TraceLane* current_ = nullptr;

  TraceRecorder* recorder_;
  std::string name_;
  std::vector<TraceEvent> events_;
  int32_t open_ = -1;
};

// The lanes of one rank in one window of time.
class TraceRecorder {
 public:
  TraceRecorder() = default;
  ~TraceRecorder() { End(); }
  TraceRecorder(const TraceRecorder&) = delete;
  TraceRecorder& operator=(const TraceRecorder&) = delete;

  // Between them the calling thread is recorded, on the first lane, all of it inside one span.
  void Begin();
  void End();

  // lanes()[0] is "compute", the others "communication". Other threads must be at rest.
  std::vector<const TraceLane*> lanes() const;

 private:
  friend class TraceThread;
  TraceLane* LaneOfThisThread();

  std::mutex mutex_;
  std::vector<std::pair<std::thread::id, std::unique_ptr<TraceLane>>> lanes_;
  bool recording_ = false;
};

// Records the calling thread on a lane of its own while it lives, beside the thread that `recorder`
// began on. Null: nothing.
class TraceThread {
 public:
  explicit TraceThread(TraceRecorder* recorder) {
    if (recorder) TraceLane::current_ = recorder->LaneOfThisThread();
  }
  ~TraceThread() { TraceLane::current_ = nullptr; }
  TraceThread(const TraceThread&) = delete;
  TraceThread& operator=(const TraceThread&) = delete;
};

class TraceSpan {
 public:
  TraceSpan(TraceKind kind, const char* name, const TraceDetail& detail = {})
      : lane_(TraceLane::Current()) {
    if (lane_) lane_->Open(kind, name, detail);
  }
  ~TraceSpan() {
    if (lane_) lane_->Close();
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

  // `make` gives the label; called only where the span is recorded. Before spans inside begin.
  template <class F>
  void Label(F&& make) {
    if (lane_) lane_->Label(make());
  }

 private:
  TraceLane* lane_;
};

}  // namespace shoal
