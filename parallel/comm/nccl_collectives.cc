#include "parallel/comm/nccl_collectives.h"

#include <algorithm>
#include <utility>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/zeros.h>

#include "core/dtype.h"

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
                                   const CommOptions& options)
    : host_(std::move(host)),
      place_(place),
      options_(options),
      handle_(std::move(handle)),
      links_(std::move(place), host_->Split(0, host_->rank())) {
  CountCallsOf(*host_);
}

void NcclCommunicator::AllReduce(at::Tensor& tensor, ReduceOp op) {
  if (!IsOnDevice(tensor)) return host_->AllReduce(tensor, op);
  const Signature signature = CheckAllReduce(tensor, op, place_.device);
  const TraceSpan span = Count("all-reduce", BytesSent(signature, size(), rank()));
  if (tensor.numel() == 0) return;
  if (UsesPieces(signature)) return AllReducePieces(Flat(tensor), signature);
  handle_->Run(signature, [&](ncclComm_t comm, cudaStream_t stream) {
    void* data = tensor.mutable_data_ptr();
    return ncclAllReduce(data, data, tensor.numel(), NcclType(signature.dtype), ncclSum, comm,
                         stream);
  });
}

void NcclCommunicator::ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) {
  if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->ReduceScatter(out, in, op);
  const Signature signature = CheckReduceScatter(out, in, op, size(), rank(), place_.device);
  const TraceSpan span = Count("reduce-scatter", BytesSent(signature, size(), rank()));
  if (out.numel() == 0) return;
  if (UsesPieces(signature)) return ReduceScatterPieces(Flat(out), Flat(in), signature);
  handle_->Run(signature, [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclReduceScatter(in.const_data_ptr(), out.mutable_data_ptr(), out.numel(),
                             NcclType(signature.dtype), ncclSum, comm, stream);
  });
}

void NcclCommunicator::AllGather(at::Tensor& out, const at::Tensor& in) {
  if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->AllGather(out, in);
  const Signature signature = CheckAllGather(out, in, size(), rank(), place_.device);
  const TraceSpan span = Count("all-gather", BytesSent(signature, size(), rank()));
  if (in.numel() > 0) Gather(out, in, signature);
}

void NcclCommunicator::Broadcast(at::Tensor& tensor, int root) {
  if (!IsOnDevice(tensor)) return host_->Broadcast(tensor, root);
  const Signature signature = CheckBroadcast(tensor, root, size(), place_.device);
  const TraceSpan span = Count("broadcast", BytesSent(signature, size(), rank()));
  if (tensor.numel() == 0) return;
  handle_->Run(signature, [&](ncclComm_t comm, cudaStream_t stream) {
    void* data = tensor.mutable_data_ptr();
    return ncclBroadcast(data, data, tensor.nbytes(), ncclInt8, root, comm, stream);
  });
}

void NcclCommunicator::AllToAll(at::Tensor& out, const at::Tensor& in) {
  if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->AllToAll(out, in);
  const Signature signature = CheckAllToAll(out, in, size(), place_.device);
  const TraceSpan span = Count("all-to-all", BytesSent(signature, size(), rank()));
  if (in.numel() == 0) return;
  const int64_t slice = in.numel() / size();
  at::Tensor rows = out.detach().view({size(), slice});
  Exchange(rows, Flat(in), slice, signature);
}

void NcclCommunicator::Send(const at::Tensor& tensor, int destination) {
  if (!IsOnDevice(tensor)) return host_->Send(tensor, destination);
  CheckPointToPoint("Send", tensor, destination, size(), rank(), place_.device);
  const TraceSpan span = Count("send", tensor.nbytes());
  links_.Send(tensor, destination);
}

void NcclCommunicator::Recv(at::Tensor& tensor, int source) {
  if (!IsOnDevice(tensor)) return host_->Recv(tensor, source);
  CheckPointToPoint("Recv", tensor, source, size(), rank(), place_.device);
  const TraceSpan span = Count("receive", 0, tensor.nbytes());
  links_.Recv(tensor, source);
}

std::unique_ptr<Communicator> NcclCommunicator::Split(int color, int key) {
  std::unique_ptr<Communicator> host = host_->Split(color, key);
  auto part = std::make_unique<NcclHandle>(place_);
  handle_->SplitInto(*part, color, key);
  if (host == nullptr) return nullptr;
  return std::make_unique<NcclCommunicator>(std::move(host), std::move(part), place_, options_);
}

at::Tensor NcclCommunicator::AllocateRegistered(int64_t numel, at::ScalarType dtype) {
  return at::empty({numel}, at::TensorOptions().dtype(dtype).device(place_.device));
}

bool NcclCommunicator::UsesPieces(const Signature& signature) const {
  return options_.deterministic || signature.op != ReduceOp::kSum ||
         c10::isReducedFloatingType(signature.dtype);
}

void NcclCommunicator::AllReducePieces(at::Tensor tensor, const Signature& signature) {
  if (size() == 1) return;
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
