// Files in memory that remember what a disk would still hold after a power loss: for tests of crash
// safety.
#pragma once

#include <map>
#include <mutex>

#include "core/file_system.h"

namespace shoal {

// The strictest reading of POSIX: Sync makes a file's bytes durable but not its name; SyncDirectory
// makes a folder's own names durable, not those below. The root "/" and "." are the same empty,
// durable folder.
class MemoryFileSystem : public FileSystem {
 public:
  MemoryFileSystem();
  // The power goes: every file and folder is as it was last synced. Open files keep what they see.
  void DropUnsynced();

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

  struct Node;
  using Entries = std::map<std::string, std::shared_ptr<Node>>;

 private:
  // Where a name stands or would stand.
  struct Place {
    std::shared_ptr<Node> folder;
    std::string name;
  };
  absl::StatusOr<std::shared_ptr<Node>> Find(const std::string& path) const;
  absl::StatusOr<Place> FindPlace(const std::string& path) const;

  const std::shared_ptr<std::mutex>
      mutex_;  // shared with open files, which may outlive this object
  const std::shared_ptr<Node> root_;
};

}  // namespace shoal
