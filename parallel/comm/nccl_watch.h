// A thread that looks after what the GPUs do on their own: NCCL's kernels wait for other ranks
// without an end, and no host call stands by. Included by nccl_*.cc only.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <c10/core/Device.h>

#include "absl/time/time.h"

namespace shoal {

class NcclWatched {
 public:
  struct Report {
    std::string problem;     // Not empty: the job must end, and why
    bool in_motion = false;  // Wants to be looked at again at once
  };
  virtual ~NcclWatched() = default;
  // On the watch's thread, again and again.
  virtual Report Look(absl::Time now) = 0;
};

class NcclWatch {
 public:
  // Ends the job, and does not return but in tests.
  using EndJob = std::function<void(const std::string& problem)>;

  // `device`: made current on the thread. Looks every `period`.
  NcclWatch(c10::Device device, absl::Duration period, EndJob end_job);
  ~NcclWatch();
  NcclWatch(const NcclWatch&) = delete;
  NcclWatch& operator=(const NcclWatch&) = delete;

  // `watched` is looked at until Remove has returned.
  void Add(NcclWatched* watched);
  void Remove(NcclWatched* watched);
  // Something is in motion.
  void Wake();

 private:
  void Run();

  c10::Device device_;
  absl::Duration period_;
  EndJob end_job_;
  std::mutex mutex_;  // Held while looking
  std::condition_variable changed_;
  std::vector<NcclWatched*> watched_;
  bool awake_ = false;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace shoal
