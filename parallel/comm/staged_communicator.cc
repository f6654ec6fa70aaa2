#include "parallel/comm/staged_communicator.h"

#include <array>
#include <utility>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "parallel/comm/signature.h"

namespace shoal {
namespace {

// As through its pointer: no version counts up, so tensors that autograd has saved stay valid.
void CopyBytes(const at::Tensor& to, const at::Tensor& from) {
  if (from.numel() == 0) return;
  const at::AutoDispatchBelowADInplaceOrView raw;
  to.view({to.numel()}).copy_(from.view({from.numel()}));
}

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> host, at::Device device)
      : host_(std::move(host)), device_(device) {
    CountCallsOf(*host_);
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string name() const override { return absl::StrCat("staged-", host_->name()); }
  at::Device device() const override { return device_; }

  void AllReduce(at::Tensor& tensor, ReduceOp op) override {
    if (!IsOnDevice(tensor)) return host_->AllReduce(tensor, op);
    CheckAllReduce(tensor, op, device_);
    if (size() == 1) return void(Count("all-reduce", 0));
    at::Tensor staged = ToHost(0, tensor);
    host_->AllReduce(staged, op);
    CopyBytes(tensor, staged);
  }

  void AllGather(at::Tensor& out, const at::Tensor& in) override {
    if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->AllGather(out, in);
    CheckAllGather(out, in, size(), rank(), device_);
    if (size() == 1) return Alone("all-gather", out, in);
    at::Tensor staged = Staging(0, out.numel(), out.scalar_type());
    const at::Tensor mine = staged.narrow(0, rank() * in.numel(), in.numel());
    CopyBytes(mine, in);
    host_->AllGather(staged, mine);
    CopyBytes(out, staged);
  }

  void ReduceScatter(at::Tensor& out, const at::Tensor& in, ReduceOp op) override {
    if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->ReduceScatter(out, in, op);
    CheckReduceScatter(out, in, op, size(), rank(), device_);
    if (size() == 1) return Alone("reduce-scatter", out, in);
    const at::Tensor staged = ToHost(0, in);
    at::Tensor mine = staged.narrow(0, rank() * out.numel(), out.numel());
    host_->ReduceScatter(mine, staged, op);
    CopyBytes(out, mine);
  }

  void Broadcast(at::Tensor& tensor, int root) override {
    if (!IsOnDevice(tensor)) return host_->Broadcast(tensor, root);
    CheckBroadcast(tensor, root, size(), device_);
    if (size() == 1) return void(Count("broadcast", 0));
    at::Tensor staged =
        rank() == root ? ToHost(0, tensor) : Staging(0, tensor.numel(), tensor.scalar_type());
    host_->Broadcast(staged, root);
    if (rank() != root) CopyBytes(tensor, staged);
  }

  void AllToAll(at::Tensor& out, const at::Tensor& in) override {
    if (!IsOnDevice(out) && !IsOnDevice(in)) return host_->AllToAll(out, in);
    CheckAllToAll(out, in, size(), device_);
    if (size() == 1) return Alone("all-to-all", out, in);
    const at::Tensor sent = ToHost(0, in);
    at::Tensor received = Staging(1, out.numel(), out.scalar_type());
    host_->AllToAll(received, sent);
    CopyBytes(out, received);
  }

  void Send(const at::Tensor& tensor, int destination) override {
    if (!IsOnDevice(tensor)) return host_->Send(tensor, destination);
    CheckPointToPoint("Send", tensor, destination, size(), rank(), device_);
    host_->Send(ToHost(0, tensor), destination);
  }

  void Recv(at::Tensor& tensor, int source) override {
    if (!IsOnDevice(tensor)) return host_->Recv(tensor, source);
    CheckPointToPoint("Recv", tensor, source, size(), rank(), device_);
    at::Tensor staged = Staging(0, tensor.numel(), tensor.scalar_type());
    host_->Recv(staged, source);
    CopyBytes(tensor, staged);
  }

  void Barrier() override { host_->Barrier(); }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    std::unique_ptr<Communicator> part = host_->Split(color, key);
    if (part == nullptr) return nullptr;
    return std::make_unique<StagedCommunicator>(std::move(part), device_);
  }

  at::Tensor AllocateRegistered(int64_t numel, at::ScalarType dtype) override {
    return at::empty({numel}, at::TensorOptions().dtype(dtype).device(device_));
  }

  [[noreturn]] void Abort(int exit_code, const std::string& reason) override {
    host_->Abort(exit_code, reason);
    __builtin_unreachable();
  }

 private:
  bool IsOnDevice(const at::Tensor& tensor) const {
    return tensor.defined() && tensor.device() == device_;
  }

  // (numel) of the buffer's memory; what it held before is lost.
  at::Tensor Staging(int buffer, int64_t numel, at::ScalarType dtype) {
    const int64_t bytes = numel * ElementBytes(dtype);
    at::Tensor& memory = buffers_[buffer];
    if (!memory.defined() || memory.numel() < bytes) {
      memory = at::Tensor();  // Before the larger one is there
      memory =
          at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(device_.is_cuda()));
    }
    return memory.narrow(0, 0, bytes).view(dtype);
  }

  at::Tensor ToHost(int buffer, const at::Tensor& tensor) {
    at::Tensor staged = Staging(buffer, tensor.numel(), tensor.scalar_type());
    CopyBytes(staged, tensor);
    return staged;
  }

  void Alone(const char* call, const at::Tensor& out, const at::Tensor& in) {
    const TraceSpan span = Count(call, 0);
    if (out.const_data_ptr() != in.const_data_ptr()) CopyBytes(out, in);
  }

  std::unique_ptr<Communicator> host_;
  at::Device device_;
  std::array<at::Tensor, 2> buffers_;  // (bytes), of the longest call so far
};

}  // namespace

std::unique_ptr<Communicator> MakeStagedCommunicator(std::unique_ptr<Communicator> host,
                                                     at::Device device) {
  return std::make_unique<StagedCommunicator>(std::move(host), device);
}

}  // namespace shoal
