// Faults on demand: for tests that fail, tear or forget the k-th call, for every k.
#pragma once

#include <atomic>

#include "core/file_system.h"

namespace shoal {

struct Fault {
  enum class Kind {
    kFail,         // this call does nothing and fails; later ones work
    kShortWrite,   // a write writes half its bytes and fails; other calls: kFail
    kCrashBefore,  // this call does nothing; it and all later ones fail
    kCrashTorn,    // a write writes half its bytes; it and all later ones fail; other calls:
                   // kCrashBefore
    kCrashAfter,   // this call works but fails, and all later ones fail
  };
  Kind kind = Kind::kFail;
  int64_t call = 0;  // from 1; 0: never
  int error = 5;     // errno of kFail and kShortWrite: EIO
};

// Passes every call on to `base` until the fault is due. Every call of the FileSystem and of the
// files it opened counts, in the order they come. With DropUnsynced of a MemoryFileSystem as base a
// crash is a power loss, without it the death of the process.
class FaultyFileSystem : public FileSystem {
 public:
  // `base` outlives this object, which outlives the files it opens.
  FaultyFileSystem(FileSystem& base, Fault fault) : base_(base), fault_(fault) {}

  // Calls so far: with no fault due, the number of points at which one can be.
  int64_t calls() const { return calls_; }

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

  // What the call that is being made does instead of its work.
  enum class Action { kWork, kFail, kTear, kWorkThenFail };
  Action NextAction();
  absl::Status Failure(absl::string_view operation) const;

 private:
  FileSystem& base_;
  const Fault fault_;
  std::atomic<int64_t> calls_ = 0;
};

}  // namespace shoal
