// What the communicators of ranks on devices have in common: tensors of host memory go to the
// communicator of the same ranks' hosts, those of the device are checked, and a group of one copies
// at most.
#pragma once

#include <memory>
#include <string>

#include "parallel/comm/communicator.h"
#include "parallel/comm/signature.h"

namespace shoal {

class DeviceMemoryCommunicator : public Communicator {
 public:
  int rank() const final { return host_->rank(); }
  int size() const final { return host_->size(); }
  at::Device device() const final { return device_; }

  void AllReduce(at::Tensor& tensor, ReduceOp op) final;
  void AllGather(at::Tensor& out, const at::Tensor& in) final;
  void ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) final;
  void Broadcast(at::Tensor& tensor, int root) final;
  void AllToAll(at::Tensor& out, const at::Tensor& in) final;
  void Send(const at::Tensor& tensor, int destination) final;
  void Recv(at::Tensor& tensor, int source) final;
  // Of the hosts: what the devices have been given may still be under way.
  void Barrier() final { host_->Barrier(); }
  at::Tensor AllocateRegistered(int64_t numel, at::ScalarType dtype) final;
  [[noreturn]] void Abort(int exit_code, const std::string& reason) final;

 protected:
  // `host`: of the same ranks; its counters become this one's.
  DeviceMemoryCommunicator(std::shared_ptr<Communicator> host, at::Device device);

  Communicator& host() { return *host_; }
  const Communicator& host() const { return *host_; }

  // Calls on tensors of the device, checked, in a group of several ranks; still to be counted.
  // `call` comes without its sequence number.
  virtual void DoAllReduce(Signature call, at::Tensor& tensor) = 0;
  virtual void DoAllGather(Signature call, at::Tensor& out, const at::Tensor& in) = 0;
  virtual void DoReduceScatter(Signature call, at::Tensor& out, const at::Tensor& in) = 0;
  virtual void DoBroadcast(Signature call, at::Tensor& tensor) = 0;
  virtual void DoAllToAll(Signature call, at::Tensor& out, const at::Tensor& in) = 0;
  virtual void DoSend(const at::Tensor& tensor, int destination) = 0;
  virtual void DoRecv(at::Tensor& tensor, int source) = 0;

  // As through pointers: no version counts up, so tensors that autograd has saved stay valid.
  static void CopyBytes(const at::Tensor& to, const at::Tensor& from);

 private:
  bool IsOnDevice(const at::Tensor& tensor) const {
    return tensor.defined() && tensor.device() == device_;
  }
  // A call of a group of one.
  void Alone(const char* name, const at::Tensor& out, const at::Tensor& in);

  std::shared_ptr<Communicator> host_;
  at::Device device_;
};

}  // namespace shoal
