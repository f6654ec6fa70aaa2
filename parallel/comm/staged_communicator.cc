#include "parallel/comm/staged_communicator.h"

#include <array>
#include <utility>

#include <ATen/ops/empty.h>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "parallel/comm/device_memory_communicator.h"

namespace shoal {
namespace {

// The host communicator counts the calls.
class StagedCommunicator final : public DeviceMemoryCommunicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> host, at::Device device)
      : DeviceMemoryCommunicator(std::move(host), device) {}

  std::string name() const override { return absl::StrCat("staged-", host().name()); }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    std::unique_ptr<Communicator> part = host().Split(color, key);
    if (part == nullptr) return nullptr;
    return std::make_unique<StagedCommunicator>(std::move(part), device());
  }

 private:
  void DoAllReduce(Signature call, at::Tensor& tensor) override {
    at::Tensor staged = ToHost(0, tensor);
    host().AllReduce(staged, call.op);
    CopyBytes(tensor, staged);
  }

  void DoAllGather(Signature, at::Tensor& out, const at::Tensor& in) override {
    at::Tensor staged = Staging(0, out.numel(), out.scalar_type());
    const at::Tensor mine = staged.narrow(0, rank() * in.numel(), in.numel());
    CopyBytes(mine, in);
    host().AllGather(staged, mine);
    CopyBytes(out, staged);
  }

  void DoReduceScatter(Signature call, at::Tensor& out, const at::Tensor& in) override {
    const at::Tensor staged = ToHost(0, in);
    at::Tensor mine = staged.narrow(0, rank() * out.numel(), out.numel());
    host().ReduceScatter(mine, staged, call.op);
    CopyBytes(out, mine);
  }

  void DoBroadcast(Signature call, at::Tensor& tensor) override {
    const bool sends = rank() == call.root;
    at::Tensor staged =
        sends ? ToHost(0, tensor) : Staging(0, tensor.numel(), tensor.scalar_type());
    host().Broadcast(staged, call.root);
    if (!sends) CopyBytes(tensor, staged);
  }

  void DoAllToAll(Signature, at::Tensor& out, const at::Tensor& in) override {
    const at::Tensor sent = ToHost(0, in);
    at::Tensor received = Staging(1, out.numel(), out.scalar_type());
    host().AllToAll(received, sent);
    CopyBytes(out, received);
  }

  void DoSend(const at::Tensor& tensor, int destination) override {
    host().Send(ToHost(0, tensor), destination);
  }

  void DoRecv(at::Tensor& tensor, int source) override {
    at::Tensor staged = Staging(0, tensor.numel(), tensor.scalar_type());
    host().Recv(staged, source);
    CopyBytes(tensor, staged);
  }

  // (numel) of the buffer's memory; what it held before is lost.
  at::Tensor Staging(int buffer, int64_t numel, at::ScalarType dtype) {
    const int64_t bytes = numel * ElementBytes(dtype);
    at::Tensor& memory = buffers_[buffer];
    if (!memory.defined() || memory.numel() < bytes) {
      memory = at::Tensor();  // Before the larger one is there
      memory = at::empty({bytes},
                         at::TensorOptions().dtype(at::kByte).pinned_memory(!device().is_cpu()));
    }
    return memory.narrow(0, 0, bytes).view(dtype);
  }

  at::Tensor ToHost(int buffer, const at::Tensor& tensor) {
    at::Tensor staged = Staging(buffer, tensor.numel(), tensor.scalar_type());
    CopyBytes(staged, tensor);
    return staged;
  }

  std::array<at::Tensor, 2> buffers_;  // (bytes), of the longest call so far
};

}  // namespace

std::unique_ptr<Communicator> MakeStagedCommunicator(std::unique_ptr<Communicator> host,
                                                     at::Device device) {
  return std::make_unique<StagedCommunicator>(std::move(host), device);
}

}  // namespace shoal
