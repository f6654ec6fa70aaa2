// The collectives of ranks that share a host: each rank reads its peers' memory itself.
//
// [Note: pulling] A call has one source buffer a rank. It is announced in a slot; after a barrier
// every rank knows where its peers' buffers are and pulls what it needs, without anyone's help:
//   ReduceScatter  rank r adds slice r of all sources, in rank order
//   AllGather      every rank copies all sources
//   AllReduce      ReduceScatter within the tensor, then AllGather of the slices: the same bits
//   Broadcast      every rank copies the root's source
//   AllToAll       rank r copies slice r of all sources
// A source that peers cannot address (ordinary memory of a process) is copied by its owner, chunk
// by chunk, through a staging buffer; two halves alternate, so one barrier a chunk is enough.
// Sources up to kSmallBytes always go this way: one barrier instead of two, since nobody reads the
// caller's tensor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "parallel/comm/comm_options.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/host_group.h"

namespace shoal {

// What tells rank threads from processes: how memory becomes visible to peers, and how a job ends.
// One per rank, shared by the communicators split from its first.
class HostBackend {
 public:
  virtual ~HostBackend() = default;

  virtual const char* name() const = 0;
  // Where peers find `data`; segment 0 if they cannot.
  virtual Location Locate(const std::byte* data) = 0;
  // A peer's memory in this rank's address space. Throws CommError if it cannot be mapped.
  virtual const std::byte* Resolve(const Location& location) = 0;
  virtual at::Tensor Allocate(int64_t numel, at::ScalarType dtype) = 0;

  // A zero-filled region for a HostGroup of `size` ranks and where the others find it; and the
  // others' way to it. The creator holds the region until all have opened it.
  virtual std::pair<std::shared_ptr<std::byte>, Location> CreateRegion(int size) = 0;
  virtual std::shared_ptr<std::byte> OpenRegion(const Location& location, int size) = 0;

  // See Communicator::Abort.
  [[noreturn]] virtual void Abort(int exit_code, const std::string& reason) = 0;
};

// Used by one thread at a time, Abort by any.
class HostCommunicator final : public Communicator {
 public:
  HostCommunicator(std::shared_ptr<HostBackend> backend, std::shared_ptr<std::byte> region,
                   int size, int rank, const CommOptions& options);

  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  std::string name() const override { return backend_->name(); }

  void AllReduce(at::Tensor& tensor, ReduceOp op) override;
  void AllGather(at::Tensor& out, const at::Tensor& in) override;
  void ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) override;
  void Broadcast(at::Tensor& tensor, int root) override;
  void AllToAll(at::Tensor& out, const at::Tensor& in) override;
  void Send(const at::Tensor& tensor, int destination) override;
  void Recv(at::Tensor& tensor, int source) override;
  void Barrier() override;
  std::unique_ptr<Communicator> Split(int color, int key) override;
  at::Tensor AllocateRegistered(int64_t numel, at::ScalarType dtype) override;
  [[noreturn]] void Abort(int exit_code, const std::string& reason) override;

 private:
  struct Call;
  // A run of bytes in a source buffer.
  struct Window {
    int64_t begin = 0;
    int64_t bytes = 0;
  };
  enum class CutBy {
    kReader,  // Reader j pulls windows[j] of every source
    kSource,  // Every reader pulls windows[s] of source s
  };
  // Receives one chunk: its offset in the windows, its greatest length, and where each source's
  // part of it stands.
  using Consume =
      std::function<void(int64_t offset, int64_t bytes, std::span<const std::byte* const> sources)>;

  // Announces this rank's source (nullptr: nothing of this rank's is read).
  Call Begin(Signature signature, const void* source, int64_t source_bytes);
  // After the first barrier: compares the calls and finds the peers' sources.
  void Meet(Call& call);
  // Calls `consume` for one chunk after the other, each between barriers. May be repeated in one
  // call.
  void Pull(Call& call, CutBy cut, std::span<const Window> windows, const Consume& consume);
  void Stage(const Call& call, CutBy cut, std::span<const Window> windows, int64_t offset,
             int64_t chunk);
  // Returns when peers have read this rank's source.
  void End(const Call& call);

  // Pulls whole windows of every source to destinations[source].
  void Gather(Call& call, std::span<const Window> windows,
              std::span<std::byte* const> destinations);
  // `mine` of every rank, in rank order.
  template <typename T>
  std::vector<T> Exchange(const T& mine);

  std::shared_ptr<HostBackend> backend_;
  CommOptions options_;
  HostGroup group_;
  uint64_t sequence_ = 0;
  int half_ = 0;  // Staging buffer of the next chunk; the same on all ranks
};

}  // namespace shoal
