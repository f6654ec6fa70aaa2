#include "parallel/comm/nccl_collectives.h"

#include <algorithm>
#include <utility>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/zeros.h>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

// Below, latency counts: every rank gathers all and adds for itself, one call instead of two.
constexpr int64_t kGatheredBytes = 256 << 10;

ncclDataType_t NcclType(at::ScalarType dtype) {
  if (dtype == at::kFloat) return ncclFloat32;
  if (dtype == at::kDouble) return ncclFloat64;
  return ncclInt64;
}

at::Tensor Flat(const at::Tensor& tensor) { return tensor.detach().view({tensor.numel()}); }

// rows: (ranks, n), used up. Returns (n): row 0 op row 1 op ..., in float32 where the dtype rounds.
at::Tensor ReduceRows(const at::Tensor& rows, ReduceOp op) {
  const at::ScalarType dtype = rows.scalar_type();
  at::Tensor result = rows[0].to(c10::isReducedFloatingType(dtype) ? at::kFloat : dtype);
  for (int64_t rank = 1; rank < rows.size(0); ++rank) {
    const at::Tensor row = rows[rank];
    if (op == ReduceOp::kSum) result.add_(row);
    if (op == ReduceOp::kMax) result = at::maximum(result, row.to(result.scalar_type()));
    if (op == ReduceOp::kMin) result = at::minimum(result, row.to(result.scalar_type()));
  }
  return result;
}

}  // namespace

NcclCommunicator::NcclCommunicator(std::shared_ptr<Communicator> host,
                                   std::unique_ptr<NcclHandle> handle, NcclHandle::Place place,
                                   std::string group, const CommOptions& options)
    : DeviceMemoryCommunicator(std::move(host), place.device),
      place_(std::move(place)),
      group_(std::move(group)),
      options_(options),
      page_(place_.ledger->Open(group_, size(), rank())),
      handle_(std::move(handle)),
      links_(place_, group_, this->host().Split(0, rank())) {}

TraceSpan NcclCommunicator::Begin(const char* name, Signature& call) {
  call = page_->Note(call);
  return Count(name, BytesSent(call, size(), rank()));
}

void NcclCommunicator::DoAllReduce(Signature call, at::Tensor& tensor) {
  const TraceSpan span = Begin("all-reduce", call);
  if (call.numel == 0) return;
  if (UsesPieces(call)) return AllReducePieces(Flat(tensor), call);
  handle_->Run(call, [&](ncclComm_t comm, cudaStream_t stream) {
    void* data = tensor.mutable_data_ptr();
    return ncclAllReduce(data, data, tensor.numel(), NcclType(call.dtype), ncclSum, comm, stream);
  });
}

void NcclCommunicator::DoReduceScatter(Signature call, at::Tensor& out, const at::Tensor& in) {
  const TraceSpan span = Begin("reduce-scatter", call);
  if (call.numel == 0) return;
  if (UsesPieces(call)) return ReduceScatterPieces(Flat(out), Flat(in), call);
  handle_->Run(call, [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclReduceScatter(in.const_data_ptr(), out.mutable_data_ptr(), out.numel(),
                             NcclType(call.dtype), ncclSum, comm, stream);
  });
}

void NcclCommunicator::DoAllGather(Signature call, at::Tensor& out, const at::Tensor& in) {
  const TraceSpan span = Begin("all-gather", call);
  if (call.numel > 0) Gather(out, in, call);
}

void NcclCommunicator::DoBroadcast(Signature call, at::Tensor& tensor) {
  const TraceSpan span = Begin("broadcast", call);
  if (call.numel == 0) return;
  handle_->Run(call, [&](ncclComm_t comm, cudaStream_t stream) {
    void* data = tensor.mutable_data_ptr();
    return ncclBroadcast(data, data, tensor.nbytes(), ncclInt8, call.root, comm, stream);
  });
}

void NcclCommunicator::DoAllToAll(Signature call, at::Tensor& out, const at::Tensor& in) {
  const TraceSpan span = Begin("all-to-all", call);
  if (call.numel == 0) return;
  const int64_t slice = in.numel() / size();
  at::Tensor rows = out.detach().view({size(), slice});
  Exchange(rows, Flat(in), slice, call);
}

void NcclCommunicator::DoSend(const at::Tensor& tensor, int destination) {
  const TraceSpan span = Count("send", tensor.nbytes());
  links_.Send(tensor, destination);
}

void NcclCommunicator::DoRecv(at::Tensor& tensor, int source) {
  const TraceSpan span = Count("receive", 0, tensor.nbytes());
  links_.Recv(tensor, source);
}

std::unique_ptr<Communicator> NcclCommunicator::Split(int color, int key) {
  std::unique_ptr<Communicator> part = host().Split(color, key);
  auto handle = std::make_unique<NcclHandle>(place_);
  handle_->SplitInto(*handle, color, key);
  std::string group = absl::StrCat(group_, "/", splits_++, ":", color);
  if (part == nullptr) return nullptr;
  return std::make_unique<NcclCommunicator>(std::move(part), std::move(handle), place_,
                                            std::move(group), options_);
}

bool NcclCommunicator::UsesPieces(const Signature& signature) const {
  return options_.deterministic || signature.op != ReduceOp::kSum ||
         c10::isReducedFloatingType(signature.dtype);
}

void NcclCommunicator::AllReducePieces(at::Tensor tensor, const Signature& signature) {
  // Results are written as through pointers: no version counts up.
  const at::AutoDispatchBelowADInplaceOrView raw;
  const int64_t bytes = static_cast<int64_t>(tensor.nbytes());
  if (bytes * size() <= kGatheredBytes) {
    at::Tensor rows = at::empty({size(), tensor.numel()}, tensor.options());
    Gather(rows, tensor, signature);
    tensor.copy_(ReduceRows(rows, signature.op));
    return;
  }
  const int64_t chunk = std::max<int64_t>(options_.chunk_bytes / tensor.element_size(), size());
  for (int64_t begin = 0; begin < tensor.numel(); begin += chunk) {
    at::Tensor part = tensor.narrow(0, begin, std::min(chunk, tensor.numel() - begin));
    const int64_t piece = (part.numel() + size() - 1) / size();
    at::Tensor padded = part;
    if (piece * size() != part.numel()) {
      padded = at::zeros({piece * size()}, part.options());
      padded.narrow(0, 0, part.numel()).copy_(part);
    }
    at::Tensor rows = at::empty({size(), piece}, part.options());
    Exchange(rows, padded, piece, signature);
    Gather(padded, ReduceRows(rows, signature.op).to(part.scalar_type()), signature);
    if (!padded.is_same(part)) part.copy_(padded.narrow(0, 0, part.numel()));
  }
}

void NcclCommunicator::ReduceScatterPieces(at::Tensor out, const at::Tensor& in,
                                           const Signature& signature) {
  const at::AutoDispatchBelowADInplaceOrView raw;
  const int64_t chunk = std::max<int64_t>(options_.chunk_bytes / (out.element_size() * size()), 1);
  for (int64_t begin = 0; begin < out.numel(); begin += chunk) {
    at::Tensor part = out.narrow(0, begin, std::min(chunk, out.numel() - begin));
    at::Tensor rows = at::empty({size(), part.numel()}, part.options());
    Exchange(rows, in.narrow(0, begin, in.numel() - begin), out.numel(), signature);
    part.copy_(ReduceRows(rows, signature.op));
  }
}

void NcclCommunicator::Exchange(at::Tensor& rows, const at::Tensor& in, int64_t stride,
                                const Signature& signature) {
  const int64_t row_bytes = rows.size(1) * rows.element_size();
  const int64_t stride_bytes = stride * in.element_size();
  const auto* from = static_cast<const std::byte*>(in.const_data_ptr());
  auto* to = static_cast<std::byte*>(rows.mutable_data_ptr());
  handle_->Run(signature, [&](ncclComm_t comm, cudaStream_t stream) {
    ncclResult_t result = ncclGroupStart();
    const auto then = [&](ncclResult_t next) {
      if (result == ncclSuccess || result == ncclInProgress) result = next;
    };
    for (int peer = 0; peer < size(); ++peer) {
      then(ncclSend(from + peer * stride_bytes, row_bytes, ncclInt8, peer, comm, stream));
      then(ncclRecv(to + peer * row_bytes, row_bytes, ncclInt8, peer, comm, stream));
    }
    then(ncclGroupEnd());
    return result;
  });
}

void NcclCommunicator::Gather(at::Tensor& out, const at::Tensor& in, const Signature& signature) {
  handle_->Run(signature, [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclAllGather(in.const_data_ptr(), out.mutable_data_ptr(), in.nbytes(), ncclInt8, comm,
                         stream);
  });
}

}  // namespace shoal
