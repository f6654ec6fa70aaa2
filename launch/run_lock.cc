#include "launch/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace shoal {

absl::StatusOr<RunLock> RunLock::Take(const std::string& output_dir) {
  std::error_code error;
  std::filesystem::create_directories(output_dir, error);
  const std::string path = absl::StrCat(output_dir, "/.lock");
  const int fd = error ? -1 : open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::PermissionDeniedError(absl::StrCat("run.output_dir: cannot write ", path, ": ",
                                                    error ? error.message() : strerror(errno)));
  }
  RunLock lock(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) return lock;  // A file system without locks: nothing to be told by it
  return absl::FailedPreconditionError(absl::StrCat(
      "another job runs in ", output_dir, ": wait for its end, or choose another run.output_dir"));
}

RunLock::~RunLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace shoal
