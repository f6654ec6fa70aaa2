// The one seam between Shoal and the disk. Everything that must survive a failure (checkpoints,
// exports, metrics) is written through a FileSystem, so that a test can fail, tear or forget any
// call (see faulty_file_system.h and memory_file_system.h).
//
// Durability is POSIX's: written bytes survive a power loss once WritableFile::Sync returned OK,
// and a name (created, renamed or removed) once SyncDirectory of its folder did. Paths are byte
// strings with '/'. Implementations are thread-safe; one WritableFile is used by one thread at a
// time. Errors carry the path, the operation and errno's text; NotFound: no such path;
// ResourceExhausted: disk full.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"

#include "core/status.h"

namespace shoal {

class WritableFile {
 public:
  // Closes without Sync and without a word of errors: the way out after a failure.
  virtual ~WritableFile() = default;
  // All of `data`, or an error; after an error the file's content is undefined.
  virtual absl::Status Append(absl::string_view data) = 0;
  virtual absl::Status WriteAt(int64_t offset, absl::string_view data) = 0;
  // Never retried after an error: the kernel may have dropped the pages.
  virtual absl::Status Sync() = 0;
  virtual absl::Status Close() = 0;
};

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  // Fills all of `out`; OutOfRange if the file ends before.
  virtual absl::Status ReadAt(int64_t offset, absl::Span<char> out) const = 0;
  virtual absl::StatusOr<int64_t> Size() const = 0;
};

enum class OpenMode {
  kCreateNew,  // AlreadyExists if there is one
  kTruncate,   // created, or emptied
  kAppend,     // created, or written after its end
  kUpdate,     // NotFound if there is none; its content is kept, for WriteAt
};

struct FileInfo {
  bool is_directory = false;
  int64_t bytes = 0;  // of a file
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path,
                                                                     OpenMode mode) = 0;
  // Regular files only: a pipe or a device is refused instead of waited for.
  virtual absl::StatusOr<std::unique_ptr<ReadableFile>> OpenForRead(const std::string& path) = 0;
  virtual absl::StatusOr<FileInfo> Stat(const std::string& path) = 0;
  // Names (no path) in byte order, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& directory) = 0;
  // One level; AlreadyExists if there is one.
  virtual absl::Status CreateDirectory(const std::string& path) = 0;
  // Atomic. Replaces a file at `to`; a folder there must be empty.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // Swaps two existing paths atomically. Unimplemented where the file system cannot (NFS).
  virtual absl::Status Exchange(const std::string& a, const std::string& b) = 0;
  // A file or an empty folder.
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
};

// The operating system's files.
class PosixFileSystem : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path,
                                                             OpenMode mode) override;
  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenForRead(const std::string& path) override;
  absl::StatusOr<FileInfo> Stat(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Exchange(const std::string& a, const std::string& b) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
};

// "a", "b" -> "a/b"; "a/", "b" -> "a/b"; "", "b" -> "b".
std::string JoinPath(const std::string& folder, const std::string& name);
// The path without its last name: "a/b" and "a/b/" -> "a"; "b" -> "."; "/b" -> "/".
std::string ParentPath(const std::string& path);
// The last name: "a/b" and "a/b/" -> "b".
std::string BaseName(const std::string& path);

// False for NotFound; other failures are errors.
absl::StatusOr<bool> Exists(FileSystem& files, const std::string& path);
// The whole file; FailedPrecondition if it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadFile(FileSystem& files, const std::string& path, int64_t max_bytes);
// Every missing folder on the way, each made durable in its parent.
absl::Status CreateDirectories(FileSystem& files, const std::string& path);
// Readers see the old content or all of `data`, whatever fails: written to path + ".tmp", synced,
// renamed, the folder synced.
absl::Status WriteFileAtomically(FileSystem& files, const std::string& path,
                                 absl::string_view data);
// The file, or the folder with all in it. OK if there is none.
absl::Status RemoveRecursively(FileSystem& files, const std::string& path);

}  // namespace shoal
