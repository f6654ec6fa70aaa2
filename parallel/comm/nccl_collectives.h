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
#include "parallel/comm/device_memory_communicator.h"
#include "parallel/comm/nccl_handle.h"
#include "parallel/comm/nccl_links.h"

namespace shoal {

class NcclCommunicator final : public DeviceMemoryCommunicator {
 public:
  // `host`: the same ranks' host memory. `handle` is theirs, ready. `group`: their name in the
  // ledger. Collective.
  NcclCommunicator(std::shared_ptr<Communicator> host, std::unique_ptr<NcclHandle> handle,
                   NcclHandle::Place place, std::string group, const CommOptions& options);

  std::string name() const override { return "nccl"; }
  std::unique_ptr<Communicator> Split(int color, int key) override;

 private:
  void DoAllReduce(Signature call, at::Tensor& tensor) override;
  void DoAllGather(Signature call, at::Tensor& out, const at::Tensor& in) override;
  void DoReduceScatter(Signature call, at::Tensor& out, const at::Tensor& in) override;
  void DoBroadcast(Signature call, at::Tensor& tensor) override;
  void DoAllToAll(Signature call, at::Tensor& out, const at::Tensor& in) override;
  void DoSend(const at::Tensor& tensor, int destination) override;
  void DoRecv(at::Tensor& tensor, int source) override;

  // Numbers, notes and counts a call.
  TraceSpan Begin(const char* name, Signature& call);
  bool UsesPieces(const Signature& signature) const;
  // On flat tensors. (n) in place; the other two as the calls of those names.
  void AllReducePieces(at::Tensor tensor, const Signature& signature);
  void ReduceScatterPieces(at::Tensor out, const at::Tensor& in, const Signature& signature);
  // Slice j of `in`, which begins at element j * stride, to row rank() of j's `rows` (size, n).
  void Exchange(at::Tensor& rows, const at::Tensor& in, int64_t stride, const Signature& signature);
  void Gather(at::Tensor& out, const at::Tensor& in, const Signature& signature);

  NcclHandle::Place place_;
  std::string group_;
  int splits_ = 0;
  CommOptions options_;
  std::shared_ptr<CallLedger::Page> page_;
  std::unique_ptr<NcclHandle> handle_;
  NcclLinks links_;
};

}  // namespace shoal
