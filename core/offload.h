// Memory of tensors that is put aside, in a file, while nobody computes with them (Rajbhandari et
// al. 2021, "ZeRO-Infinity").
//
//   Tensor moments = space.Zeros(n, at::kFloat);  // Aside: it takes no memory; views may be made
//   {
//     OffloadHold hold;
//     hold.Add(moments, OffloadAccess::kUpdate);  // Read, by the thread of the space
//     moments.add_(1);
//   }  // Written back by that thread, and its memory given back
//
// A tensor's address never changes, so views of it hold. Who touches one that is aside is stopped
// by the processor: there is no memory at its address.
//
// Reading and writing happen in the order in which they are asked for. So if each of a row of
// tensors is asked for before the last one is given back, two at most are in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "core/activation_store.h"
#include "core/scratch_file.h"

namespace shoal {

// The disk failed. It is thrown where memory is asked for, since that is deep inside of
// computation; a task's Run turns it into a Status.
class OffloadError : public std::runtime_error {
 public:
  explicit OffloadError(const absl::Status& status)
      : std::runtime_error(std::string(status.message())), status_(status) {}
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

enum class OffloadAccess {
  kRead,
  kUpdate,   // Read and written
  kReplace,  // Written; what is not, is zero or as it was
};

struct OffloadRegion;
class OffloadThread;

class OffloadSpace {
 public:
  // A file of its own in `folder`, which is there.
  static absl::StatusOr<std::unique_ptr<OffloadSpace>> Open(const std::string& folder);
  ~OffloadSpace();  // Tensors may outlive it, aside for ever
  OffloadSpace(const OffloadSpace&) = delete;
  OffloadSpace& operator=(const OffloadSpace&) = delete;

  // What `bytes` take on disk and, while they are here, in memory: whole pages.
  static int64_t Rounded(int64_t bytes) {
    return (bytes + ScratchFile::kAlignment - 1) / ScratchFile::kAlignment *
           ScratchFile::kAlignment;
  }

  // (numel) zeros, aside.
  at::Tensor Zeros(int64_t numel, at::ScalarType dtype);
  // Room on disk for all of Zeros(). ResourceExhausted: there is not.
  absl::Status Reserve();
  // Waits until all that was given back is written. Throws OffloadError.
  void Drain();

  int64_t bytes_reserved() const;  // Of Zeros()
  // Since the beginning.
  int64_t bytes_read() const;
  int64_t bytes_written() const;

 private:
  friend class OffloadedTensors;
  explicit OffloadSpace(std::unique_ptr<ScratchFile> file);

  std::shared_ptr<OffloadThread> thread_;
  int64_t reserved_ = 0;
};

// Begins to do what OffloadHold waits for. Of a tensor that is not aside: nothing.
void PrefetchOffloaded(const at::Tensor& tensor, OffloadAccess access);

// Keeps tensors in memory while it lives. What is not of an OffloadSpace is there anyway.
class OffloadHold {
 public:
  OffloadHold() = default;
  OffloadHold(const at::Tensor& tensor, OffloadAccess access) { Add(tensor, access); }
  ~OffloadHold() { Clear(); }
  OffloadHold(const OffloadHold&) = delete;
  OffloadHold& operator=(const OffloadHold&) = delete;

  // Waits until it is there. Throws OffloadError.
  void Add(const at::Tensor& tensor, OffloadAccess access);
  // That and nothing else: for who goes through one after another.
  void Only(const at::Tensor& tensor, OffloadAccess access);
  void Clear();

 private:
  std::vector<OffloadRegion*> regions_;
};

// Of tensors in host memory: in the file of a space, which outlives it.
class OffloadedTensors final : public KeptTensors {
 public:
  explicit OffloadedTensors(OffloadSpace& space);
  ~OffloadedTensors() override;

  int64_t least_bytes() const override { return kLeastBytes; }
  c10::DataPtr Allocate(int64_t bytes) override;

  // Of those that were made by another of the space's.
  void Leave(const at::Tensor& tensor) override;
  void Join(const at::Tensor& tensor) override;
  // Before, waits until all that was put aside earlier is written.
  void PutAside() override;
  void Prefetch() override;
  void Bring() override;

 private:
  friend class OffloadThread;
  std::shared_ptr<OffloadThread> thread_;
  std::set<OffloadRegion*> regions_;
};

}  // namespace shoal
