// MPI, started once a process and ended with the last object that uses it. No MPI name leaves
// mpi_*.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace shoal {

class MpiRuntime {
 public:
  // Starts MPI. Errors of later calls are returned to us instead of ending the job.
  static absl::StatusOr<std::shared_ptr<MpiRuntime>> Start();
  // Ends MPI; waits for the other ranks. After Abort this is not reached.
  ~MpiRuntime();

  int rank() const { return rank_; }
  int size() const { return size_; }
  // "Open MPI v4.1.4"
  std::string library() const;

  // Prints "shoal: rank R: reason" (nothing if empty) and ends all ranks with `exit_code`. Any
  // thread.
  [[noreturn]] void Abort(int exit_code, const std::string& reason);

 private:
  MpiRuntime() = default;
  static std::vector<std::string> UnlinkSegments();

  int rank_ = 0;
  int size_ = 1;
  std::vector<std::string> unlinked_;  // By this rank; see [Note: Open MPI's segments]
};

}  // namespace shoal
