// A Communicator of MPI's own collectives. Included by mpi_*.cc only.
//
// Before a call's data moves, ranks send each other its signature, point to point: so a call that
// differs between ranks, or a rank that does not come, is an error that names the rank, on every
// rank that waits. Reductions exchange pieces (MPI_Ialltoall) and add them in rank order; only
// small sums, where no order is asked for, use MPI_Allreduce. Data moves by nonblocking collectives
// that are asked until they are done; see [Note: a thread that polls].
#pragma once

#define OMPI_SKIP_MPICXX 1  // The C++ bindings, which nothing links
#include <mpi.h>

#include <array>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/comm_options.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/mpi_runtime.h"
#include "parallel/comm/signature.h"

namespace shoal {

class MpiCommunicator final : public Communicator {
 public:
  // Takes `comm` and frees it.
  MpiCommunicator(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm, const CommOptions& options);
  ~MpiCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "mpi"; }

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
  // Waits for all ranks and compares their calls.
  void Meet(Signature signature);
  // Waits for all `requests`; returns the indices of those still open when the timeout passes.
  std::vector<int> WaitAll(std::vector<MPI_Request>& requests);
  // Begins a collective of MPI's and waits for its end.
  void Complete(const char* call, const std::function<int(MPI_Request*)>& begin);
  bool SendUnsent();  // True when nothing is left
  // Splits [0, numel) into chunks of at most options_.chunk_bytes / `copies`.
  void ForChunks(int64_t numel, int64_t element, int64_t copies,
                 const std::function<void(int64_t begin, int count)>& body);
  bool UsesPieces(const Signature& signature) const;
  void AllReducePieces(std::byte* data, int count, const Signature& signature);
  void Check(int error, const char* call);
  [[noreturn]] void Fail(const std::string& reason);

  std::shared_ptr<MpiRuntime> runtime_;
  MPI_Comm comm_;
  CommOptions options_;
  int rank_ = 0;
  int size_ = 1;
  uint64_t sequence_ = 0;
  std::string broken_;  // Why nothing more can be called
  // A message on its way, with what MPI still reads of it.
  struct Unsent {
    std::array<int64_t, 2> header;  // Bytes, dtype
    at::Tensor data;
    std::vector<MPI_Request> requests;
  };
  std::list<Unsent> unsent_;
};

}  // namespace shoal
