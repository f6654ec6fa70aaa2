// A file for what a process puts aside while it runs. It has no name: nothing is left of it when
// the process ends, however that comes about.
//
// Nothing is synced. Bytes do not stay in the page cache, where the file system lets them by
// (O_DIRECT; else they are dropped from it after each call): what is put aside is to give memory
// back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace shoal {

class ScratchFile {
 public:
  // Of offsets, sizes and addresses.
  static constexpr int64_t kAlignment = 4096;

  // In a folder that is there. Errors carry the path and errno's text.
  static absl::StatusOr<std::unique_ptr<ScratchFile>> Create(const std::string& folder);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  // Room for the first `bytes`, where the file system can promise it. ResourceExhausted: it has
  // less.
  absl::Status Reserve(int64_t bytes);
  // All of it, or an error. By any thread.
  absl::Status Write(int64_t offset, const char* data, int64_t bytes);
  absl::Status Read(int64_t offset, char* data, int64_t bytes);

 private:
  ScratchFile(std::string folder, int fd, bool direct)
      : folder_(std::move(folder)), fd_(fd), direct_(direct) {}
  absl::Status Error(const std::string& what) const;
  void DropCache(int64_t offset, int64_t bytes, bool written) const;

  std::string folder_;
  int fd_;
  bool direct_;
};

}  // namespace shoal
