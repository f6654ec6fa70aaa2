// Collectives over a fixed group of ranks.
//
// Every call is collective unless it says otherwise: every rank of the group makes the same calls
// in the same order with the same sizes and dtypes. Tensors are contiguous. Reductions take
// float32, float64, bfloat16 and float16 (summed in float32, rounded once) and int64; any dtype can
// be moved. The tensors of a call lie in host memory or on the communicator's `device()`, all
// alike. A call returns when its result may be read and its inputs may be overwritten: on a device,
// by work that the caller puts on its current stream from then on. A communicator is used by one
// thread at a time.
//
// Reductions add the ranks' values in rank order (((r0 + r1) + r2) + ...), so AllReduce,
// ReduceScatter and a later AllGather give the same bits however the data is cut; see [Note:
// rank-ordered sums] in host_reduce.h. `CommOptions::deterministic = false` lets a backend use its
// library's reduction where that is faster.
//
// Autograd calls collectives from where no Status can return, so failures throw CommError; a task's
// Run turns it into a Status. After a throw the communicator is unusable. Errors on every rank:
// calls that differ between ranks (both are named), a rank that failed, a rank that does not come
// within the timeout.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/trace.h"

namespace shoal {

enum class ReduceOp { kSum, kMax, kMin };

class CommError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What this rank has sent, by the algorithm-independent count that papers use (Rajbhandari et al.
// 2020, section 7): for n ranks and tensors of M bytes in total, all-gather and reduce-scatter send
// M (n-1)/n, all-reduce 2 M (n-1)/n, broadcast M from its root, all-to-all M (n-1)/n, send M.
// Integer arithmetic: M (n-1)/n is exact when n divides M; an all-reduce of M bytes not divisible
// by n counts 2 * (M - M/n) with truncating division. Every collective, Send, Recv and Barrier is
// one call; Split and AllocateRegistered are none.
struct CommCounters {
  int64_t bytes_sent = 0;
  int64_t calls = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;  // "local", "shm", "mpi", "nccl", "staged-shm", ...
  // Of the memory that AllocateRegistered gives, and of the tensors that a rank computes with.
  // Tensors in host memory are moved by any communicator.
  virtual at::Device device() const { return at::kCPU; }

  // tensor: (n) in place, reduced over ranks, on every rank.
  virtual void AllReduce(at::Tensor& tensor, ReduceOp op = ReduceOp::kSum) = 0;
  // out: (size * n), in: (n). In place iff in is out.narrow(0, rank * n, n).
  virtual void AllGather(at::Tensor& out, const at::Tensor& in) = 0;
  // out: (n), in: (size * n); out = reduced in.narrow(0, rank * n, n). In place iff out is that
  // slice.
  virtual void ReduceScatter(at::Tensor& out, const at::Tensor& in,
                             ReduceOp op = ReduceOp::kSum) = 0;
  // tensor: (n), root's value on every rank.
  virtual void Broadcast(at::Tensor& tensor, int root) = 0;
  // out, in: (size * n); slice j of in goes to slice rank of j's out. Not in place.
  virtual void AllToAll(at::Tensor& out, const at::Tensor& in) = 0;
  // Point to point, matched in order per pair of ranks. Not collective. Send does not wait for its
  // receiver: what there is no room for is copied and moves on during this thread's later calls.
  virtual void Send(const at::Tensor& tensor, int destination) = 0;
  virtual void Recv(at::Tensor& tensor, int source) = 0;
  virtual void Barrier() = 0;

  // A new communicator of the ranks with the same colour, ordered by (key, rank). Colour < 0: none,
  // and nullptr comes back.
  virtual std::unique_ptr<Communicator> Split(int color, int key) = 0;

  // Uninitialised (numel) memory that this communicator's collectives, and those of its kin by
  // Split, move without an extra copy (shared memory on one host), on device(). Other memory works
  // too, more slowly. Not collective; freed with its last tensor, which may outlive the
  // communicator.
  virtual at::Tensor AllocateRegistered(int64_t numel, at::ScalarType dtype) = 0;

  // Ends every rank of the job with `exit_code`, from any thread, at once, after printing "shoal:
  // rank R: reason" to stderr (nothing if `reason` is empty). Not collective.
  [[noreturn]] virtual void Abort(int exit_code, const std::string& reason) = 0;

  const CommCounters& counters() const { return tally_->counters; }

  // The mesh's axis along which it goes, in traces. Of static storage.
  void set_axis(const char* axis) { tally_->axis = axis; }

 protected:
  // Counts a call, and is its span where the thread is recorded. `name` is of static storage;
  // `bytes_received`: of a call that only receives.
  TraceSpan Count(const char* name, int64_t bytes_sent, int64_t bytes_received = 0) {
    tally_->counters.bytes_sent += bytes_sent;
    ++tally_->counters.calls;
    return TraceSpan(TraceKind::kMove, name,
                     {.bytes = bytes_sent + bytes_received, .axis = tally_->axis});
  }
  // From now on `inner`, to which this communicator hands calls, counts them as this one's.
  void CountCallsOf(Communicator& inner) { inner.tally_ = tally_; }

 private:
  struct Tally {
    CommCounters counters;
    const char* axis = nullptr;
  };
  std::shared_ptr<Tally> tally_ = std::make_shared<Tally>();
};

// Strings of any length from every rank, in rank order, on every rank. Collective.
std::vector<std::string> AllGatherStrings(Communicator& comm, const std::string& mine);
// Root's string on every rank. Collective.
std::string BroadcastString(Communicator& comm, const std::string& text, int root);

}  // namespace shoal
