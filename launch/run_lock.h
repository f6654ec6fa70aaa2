// One job at a time in a run's folder.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace shoal {

// An exclusive lock on `output_dir`/.lock, held while this lives; the system drops it with the
// process, whatever ends that.
class RunLock {
 public:
  // Makes the folder if it is missing. FailedPrecondition: another process holds the lock.
  static absl::StatusOr<RunLock> Take(const std::string& output_dir);

  RunLock(RunLock&& other) : fd_(std::exchange(other.fd_, -1)) {}
  RunLock(const RunLock&) = delete;
  ~RunLock();

 private:
  explicit RunLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace shoal
