#include "core/scratch_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace shoal {
namespace {

constexpr int64_t kMostAtOnce = 1 << 30;  // Linux moves at most 2 GiB - 4 KiB a call

// A file system that has no nameless files gets one whose name goes at once.
int OpenNameless(const std::string& folder, int flags) {
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
  std::string name = absl::StrCat(folder, "/scratch-XXXXXX");
  const int named = ::mkostemp(name.data(), O_CLOEXEC | flags);
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

}  // namespace

absl::Status ScratchFile::Error(const std::string& what) const {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " scratch in ", folder_));
}

absl::StatusOr<std::unique_ptr<ScratchFile>> ScratchFile::Create(const std::string& folder) {
  int fd = OpenNameless(folder, O_DIRECT);
  const bool direct = fd >= 0;
  if (!direct && errno == EINVAL) fd = OpenNameless(folder, 0);
  auto file = std::unique_ptr<ScratchFile>(new ScratchFile(folder, fd, direct));
  if (fd < 0) return file->Error("make a file for");
  return file;
}

ScratchFile::~ScratchFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status ScratchFile::Reserve(int64_t bytes) {
  struct statvfs space;
  if (::fstatvfs(fd_, &space) == 0) {
    const double free = static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize);
    if (static_cast<double>(bytes) > free) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot reserve ", bytes,
                                                       " bytes for scratch in ", folder_, ": ",
                                                       static_cast<int64_t>(free), " are free"));
    }
  }
  if (bytes == 0 || ::fallocate(fd_, 0, 0, bytes) == 0 || errno == EOPNOTSUPP)
    return absl::OkStatus();
  return Error(absl::StrCat("reserve ", bytes, " bytes for"));
}

// Pages that are written leave the cache only once they are on disk.
void ScratchFile::DropCache(int64_t offset, int64_t bytes, bool written) const {
  if (direct_) return;
  if (written) {
    ::sync_file_range(
        fd_, offset, bytes,
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  }
  ::posix_fadvise(fd_, offset, bytes, POSIX_FADV_DONTNEED);
}

absl::Status ScratchFile::Write(int64_t offset, const char* data, int64_t bytes) {
  for (int64_t done = 0; done < bytes;) {
    const int64_t n =
        ::pwrite(fd_, data + done, std::min(bytes - done, kMostAtOnce), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error(absl::StrCat("write ", bytes, " bytes to"));
    done += n;
  }
  DropCache(offset, bytes, /*written=*/true);
  return absl::OkStatus();
}

absl::Status ScratchFile::Read(int64_t offset, char* data, int64_t bytes) {
  for (int64_t done = 0; done < bytes;) {
    const int64_t n = ::pread(fd_, data + done, std::min(bytes - done, kMostAtOnce), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error(absl::StrCat("read ", bytes, " bytes of"));
    if (n == 0)
      return absl::DataLossError(absl::StrCat("scratch in ", folder_, " ends at ", offset + done));
    done += n;
  }
  DropCache(offset, bytes, /*written=*/false);
  return absl::OkStatus();
}

}  // namespace shoal
