#include "parallel/comm/device_memory_communicator.h"

#include <utility>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

namespace shoal {

DeviceMemoryCommunicator::DeviceMemoryCommunicator(std::shared_ptr<Communicator> host,
                                                   at::Device device)
    : host_(std::move(host)), device_(device) {
  CountCallsOf(*host_);
}

void DeviceMemoryCommunicator::AllReduce(at::Tensor& tensor, ReduceOp op) {
  if (!IsOnDevice(tensor)) return host_->AllReduce(tensor, op);
  const Signature call = CheckAllReduce(tensor, op, device_);
  if (size() == 1) return Alone("all-reduce", tensor, tensor);
  DoAllReduce(call, tensor);
}

void DeviceMemoryCommunicator::AllGather(at::Tensor& out, const at::Tensor& in) {
  if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->AllGather(out, in);
  const Signature call = CheckAllGather(out, in, size(), rank(), device_);
  if (size() == 1) return Alone("all-gather", out, in);
  DoAllGather(call, out, in);
}

void DeviceMemoryCommunicator::ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) {
  if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->ReduceScatter(out, in, op);
  const Signature call = CheckReduceScatter(out, in, op, size(), rank(), device_);
  if (size() == 1) return Alone("reduce-scatter", out, in);
  DoReduceScatter(call, out, in);
}

void DeviceMemoryCommunicator::Broadcast(at::Tensor& tensor, int root) {
  if (!IsOnDevice(tensor)) return host_->Broadcast(tensor, root);
  const Signature call = CheckBroadcast(tensor, root, size(), device_);
  if (size() == 1) return Alone("broadcast", tensor, tensor);
  DoBroadcast(call, tensor);
}

void DeviceMemoryCommunicator::AllToAll(at::Tensor& out, const at::Tensor& in) {
  if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->AllToAll(out, in);
  const Signature call = CheckAllToAll(out, in, size(), device_);
  if (size() == 1) return Alone("all-to-all", out, in);
  DoAllToAll(call, out, in);
}

void DeviceMemoryCommunicator::Send(const at::Tensor& tensor, int destination) {
  if (!IsOnDevice(tensor)) return host_->Send(tensor, destination);
  CheckPointToPoint("Send", tensor, destination, size(), rank(), device_);
  DoSend(tensor, destination);
}

void DeviceMemoryCommunicator::Recv(at::Tensor& tensor, int source) {
  if (!IsOnDevice(tensor)) return host_->Recv(tensor, source);
  CheckPointToPoint("Recv", tensor, source, size(), rank(), device_);
  DoRecv(tensor, source);
}

at::Tensor DeviceMemoryCommunicator::AllocateRegistered(int64_t numel, at::ScalarType dtype) {
  return at::empty({numel}, at::TensorOptions().dtype(dtype).device(device_));
}

void DeviceMemoryCommunicator::Abort(int exit_code, const std::string& reason) {
  host_->Abort(exit_code, reason);
  __builtin_unreachable();
}

void DeviceMemoryCommunicator::CopyBytes(const at::Tensor& to, const at::Tensor& from) {
  if (from.numel() == 0) return;
  const at::AutoDispatchBelowADInplaceOrView raw;
  to.view({to.numel()}).copy_(from.view({from.numel()}));
}

void DeviceMemoryCommunicator::Alone(const char* name, const at::Tensor& out,
                                     const at::Tensor& in) {
  const TraceSpan span = Count(name, 0);
  if (out.const_data_ptr() != in.const_data_ptr()) CopyBytes(out, in);
}

}  // namespace shoal
