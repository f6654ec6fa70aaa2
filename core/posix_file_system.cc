#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/file_system.h"

namespace shoal {
namespace {

absl::Status Error(absl::string_view operation, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", operation, " ", path));
}

// A system call again for as long as a signal interrupts it.
template <typename Call>
auto Retry(const Call& call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

constexpr size_t kMaxCallBytes = 1 << 30;  // Linux moves at most 2 GiB - 4 KiB a call

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~PosixWritableFile() override {
    if (fd_ >= 0) ::close(fd_);
  }

  absl::Status Append(absl::string_view data) override {
    while (!data.empty()) {
      const ssize_t n =
          Retry([&] { return ::write(fd_, data.data(), std::min(data.size(), kMaxCallBytes)); });
      if (n < 0) return Error(absl::StrCat("write ", data.size(), " bytes to"), path_);
      data.remove_prefix(n);
    }
    return absl::OkStatus();
  }

  absl::Status WriteAt(int64_t offset, absl::string_view data) override {
    while (!data.empty()) {
      const ssize_t n = Retry(
          [&] { return ::pwrite(fd_, data.data(), std::min(data.size(), kMaxCallBytes), offset); });
      if (n < 0)
        return Error(absl::StrCat("write ", data.size(), " bytes at ", offset, " to"), path_);
      data.remove_prefix(n);
      offset += n;
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    return Retry([&] { return ::fsync(fd_); }) == 0 ? absl::OkStatus() : Error("sync", path_);
  }

  absl::Status Close() override {
    const int fd = std::exchange(fd_, -1);
    if (fd < 0) return absl::FailedPreconditionError(absl::StrCat(path_, " is closed already"));
    // Never again after EINTR: Linux has released the descriptor by then.
    return ::close(fd) == 0 || errno == EINTR ? absl::OkStatus() : Error("close", path_);
  }

 private:
  std::string path_;
  int fd_;
};

class PosixReadableFile : public ReadableFile {
 public:
  PosixReadableFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~PosixReadableFile() override { ::close(fd_); }

  absl::Status ReadAt(int64_t offset, absl::Span<char> out) const override {
    const int64_t begin = offset;
    while (!out.empty()) {
      const ssize_t n = Retry(
          [&] { return ::pread(fd_, out.data(), std::min(out.size(), kMaxCallBytes), offset); });
      if (n < 0)
        return Error(absl::StrCat("read ", out.size(), " bytes at ", offset, " of"), path_);
      if (n == 0) {
        return absl::OutOfRangeError(absl::StrCat(path_, " ends at byte ", offset, ", ", out.size(),
                                                  " short of a read that began at ", begin));
      }
      out.remove_prefix(n);
      offset += n;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> Size() const override {
    struct stat info;
    if (::fstat(fd_, &info) != 0) return Error("stat", path_);
    return info.st_size;
  }

 private:
  std::string path_;
  int fd_;
};

int OpenFlags(OpenMode mode) {
  switch (mode) {
    case OpenMode::kCreateNew:
      return O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    case OpenMode::kTruncate:
      return O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC;
    case OpenMode::kAppend:
      return O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
    case OpenMode::kUpdate:
      return O_WRONLY | O_CLOEXEC;
  }
  SHOAL_CHECK(false) << "open mode " << static_cast<int>(mode);
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WritableFile>> PosixFileSystem::OpenForWrite(const std::string& path,
                                                                            OpenMode mode) {
  const int fd = Retry([&] { return ::open(path.c_str(), OpenFlags(mode), 0666); });
  if (fd < 0) return Error("open for writing", path);
  return std::make_unique<PosixWritableFile>(path, fd);
}

absl::StatusOr<std::unique_ptr<ReadableFile>> PosixFileSystem::OpenForRead(
    const std::string& path) {
  const int fd = Retry([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd < 0) return Error("open", path);
  auto file = std::make_unique<PosixReadableFile>(path, fd);
  struct stat info;
  if (::fstat(fd, &info) != 0) return Error("stat", path);
  if (!S_ISREG(info.st_mode))
    return absl::FailedPreconditionError(absl::StrCat(path, " is not a regular file"));
  return file;
}

absl::StatusOr<FileInfo> PosixFileSystem::Stat(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return Error("stat", path);
  return FileInfo{.is_directory = S_ISDIR(info.st_mode),
                  .bytes = S_ISDIR(info.st_mode) ? 0 : info.st_size};
}

absl::StatusOr<std::vector<std::string>> PosixFileSystem::List(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), ::closedir);
  if (!dir) return Error("list", directory);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  if (errno != 0) return Error("list", directory);
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status PosixFileSystem::CreateDirectory(const std::string& path) {
  return ::mkdir(path.c_str(), 0777) == 0 ? absl::OkStatus() : Error("make folder", path);
}

absl::Status PosixFileSystem::Rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return Error(absl::StrCat("rename ", from, " to"), to);
}

absl::Status PosixFileSystem::Exchange(const std::string& a, const std::string& b) {
  if (::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) {
    return absl::OkStatus();
  }
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) {
    return absl::UnimplementedError(absl::StrCat("this file system cannot swap ", a, " and ", b));
  }
  return Error(absl::StrCat("swap ", a, " and"), b);
}

absl::Status PosixFileSystem::Remove(const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) return Error("remove", path);
  const int result = S_ISDIR(info.st_mode) ? ::rmdir(path.c_str()) : ::unlink(path.c_str());
  return result == 0 ? absl::OkStatus() : Error("remove", path);
}

absl::Status PosixFileSystem::SyncDirectory(const std::string& path) {
  const int fd = Retry([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd < 0) return Error("open folder", path);
  const int result = Retry([&] { return ::fsync(fd); });
  const int error = errno;
  ::close(fd);
  errno = error;
  return result == 0 ? absl::OkStatus() : Error("sync folder", path);
}

}  // namespace shoal
