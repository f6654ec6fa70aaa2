// A Communicator of NCCL's calls. Included by nccl_*.cc only.
//
// Sums that must be in rank order, that round (bfloat16, float16), and greatest and least values
// (NCCL's pass over NaNs) are made of pieces: rank r gets piece r of every rank, adds them in rank
// order, in float32 where they round, and all gather the results: as many bytes on the wire as
// NCCL's own reduction. Sums of float32, float64 and int64 in any order are NCCL's own.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "parallel/comm/comm_options.h"
#include "parallel/comm/nccl_handle.h"
#include "parallel/comm/nccl_links.h"

namespace shoal {

class NcclCommunicator final : public Communicator {
 public:
  // `host`: the same ranks' host memory. `handle` is theirs, ready. Collective.
  NcclCommunicator(std::shared_ptr<Communicator> host, std::unique_ptr<NcclHandle> handle,
                   NcclHandle::Place place, const CommOptions& options);

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string name() const override { return "nccl"; }
  at::Device device() const override { return place_.device; }

  void AllReduce(at::Tensor& tensor, ReduceOp op) override;
  void AllGather(at::Tensor& out, const at::Tensor& in) override;
  void ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) override;
  void Broadcast(at::Tensor& tensor, int root) override;
  void AllToAll(at::Tensor& out, const at::Tensor& in) override;
  void Send(const at::Tensor& tensor, int destination) override;
  void Recv(at::Tensor& tensor, int source) override;
  // Of the hosts: what the devices have been given may still be under way.
  void Barrier() override { host_->Barrier(); }
  std::unique_ptr<Communicator> Split(int color, int key) override;
  at::Tensor AllocateRegistered(int64_t numel, at::ScalarType dtype) override;
  [[noreturn]] void Abort(int exit_code, const std::string& reason) override {
    host_->Abort(exit_code, reason);
    __builtin_unreachable();
  }

 private:
  bool IsOnDevice(const at::Tensor& tensor) const {
    return tensor.defined() && tensor.device() == place_.device;
  }
  bool UsesPieces(const Signature& signature) const;
  // On flat tensors. (n) in place; the other two as the calls of those names.
  void AllReducePieces(at::Tensor tensor, const Signature& signature);
  void ReduceScatterPieces(at::Tensor out, const at::Tensor& in, const Signature& signature);
  // Slice j of `in`, which begins at element j * stride, to row rank() of j's `rows` (size, n).
  void Exchange(at::Tensor& rows, const at::Tensor& in, int64_t stride, const Signature& signature);
  void Gather(at::Tensor& out, const at::Tensor& in, const Signature& signature);

  std::shared_ptr<Communicator> host_;
  NcclHandle::Place place_;
  CommOptions options_;
  std::unique_ptr<NcclHandle> handle_;
  NcclLinks links_;
};

}  // namespace shoal
