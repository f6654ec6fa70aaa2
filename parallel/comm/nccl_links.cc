#include "parallel/comm/nccl_links.h"

#include <chrono>
#include <cstring>
#include <deque>
#include <exception>
#include <thread>
#include <utility>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/tensor_memory.h"

namespace shoal {
namespace {

constexpr int kSender = 0, kReceiver = 1;  // Their ranks in a link's communicator

at::Tensor IdTensor() { return at::empty({sizeof(ncclUniqueId)}, at::kByte); }

}  // namespace

// One direction between this rank and another.
class NcclLink final : public NcclWatched {
 public:
  NcclLink(const NcclHandle::Place& place, std::shared_ptr<CallLedger::Page> page, int peer)
      : place_(place),
        page_(std::move(page)),
        peer_(peer),
        handle_(place),
        stream_(c10::impl::VirtualGuardImpl(place.device.type())
                    .getStreamFromGlobalPool(place.device)) {
    place_.watch->Add(this);
  }
  ~NcclLink() override {
    const absl::Time deadline = absl::Now() + place_.timeout;
    while (Look(absl::Now()).in_motion && absl::Now() < deadline)
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    place_.watch->Remove(this);
  }

  void Begin(const ncclUniqueId& id, int rank) { handle_.Begin(id, 2, rank); }

  void Post(const at::Tensor& tensor) {
    const Signature call = page_->Note(Of(CollectiveKind::kSend, tensor));
    if (tensor.numel() == 0) return;
    {
      const at::AutoDispatchBelowADInplaceOrView raw;
      c10::Event copied(place_.device.type());
      const TensorMemoryScope memory(nullptr);  // The message outlives the pass that sends it
      at::Tensor message = tensor.detach().clone();
      copied.record(CurrentStream(place_.device));
      const std::lock_guard lock(mutex_);
      messages_.push_back({call, std::move(message), std::move(copied)});
      MoveOn();
    }
    place_.watch->Wake();
  }

  void Receive(at::Tensor& tensor) {
    const Signature call = page_->Note(Of(CollectiveKind::kRecv, tensor));
    if (tensor.numel() == 0) return;
    handle_.AwaitReady([&] { return Describe(call); });
    handle_.Run(call, [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclRecv(tensor.mutable_data_ptr(), tensor.nbytes(), ncclInt8, kSender, comm, stream);
    });
  }

  Report Look(absl::Time) override {
    const std::lock_guard lock(mutex_);
    try {
      MoveOn();
    } catch (const std::exception&) {  // Told by the handle, to the watch and to the next caller
      messages_.clear();
    }
    return {.in_motion = !messages_.empty()};
  }

 private:
  struct Message {
    Signature call;
    at::Tensor data;
    c10::Event copied;
    bool launched = false;  // Its connection is being made
  };

  Signature Of(CollectiveKind kind, const at::Tensor& tensor) const {
    return {.kind = kind, .dtype = tensor.scalar_type(), .root = peer_, .numel = tensor.numel()};
  }

  void MoveOn() {
    while (!messages_.empty() && handle_.Ready()) {
      Message& message = messages_.front();
      if (message.launched) {
        handle_.Launched(message.call, stream_);
        message.data.record_stream(stream_);
        messages_.pop_front();
        continue;
      }
      message.copied.block(stream_);
      handle_.Launch(
          [&](ncclComm_t comm, cudaStream_t stream) {
            return ncclSend(message.data.const_data_ptr(), message.data.nbytes(), ncclInt8,
                            kReceiver, comm, stream);
          },
          stream_);
      message.launched = true;
    }
  }

  NcclHandle::Place place_;
  std::shared_ptr<CallLedger::Page> page_;
  int peer_;
  NcclHandle handle_;
  c10::Stream stream_;
  std::mutex mutex_;  // For the messages: the watch sends them off
  std::deque<Message> messages_;
};

NcclLinks::NcclLinks(NcclHandle::Place place, std::string group,
                     std::unique_ptr<Communicator> meeting)
    : place_(std::move(place)), group_(std::move(group)), meeting_(std::move(meeting)) {}

NcclLinks::~NcclLinks() = default;

std::unique_ptr<NcclLink> NcclLinks::MakeLink(int sender, int receiver) {
  const int mine = meeting_->rank();
  return std::make_unique<NcclLink>(
      place_, place_.ledger->Open(absl::StrCat(group_, "/", sender, ">", receiver), 2, mine),
      mine == sender ? receiver : sender);
}

void NcclLinks::Send(const at::Tensor& tensor, int destination) {
  std::unique_ptr<NcclLink>& link = outgoing_[destination];
  if (link == nullptr) {
    const ncclUniqueId id = NcclHandle::NewId();
    at::Tensor bytes = IdTensor();
    std::memcpy(bytes.mutable_data_ptr(), &id, sizeof(id));
    meeting_->Send(bytes, destination);
    link = MakeLink(meeting_->rank(), destination);
    link->Begin(id, kSender);
  }
  link->Post(tensor);
}

void NcclLinks::Recv(at::Tensor& tensor, int source) {
  std::unique_ptr<NcclLink>& link = incoming_[source];
  if (link == nullptr) {
    ncclUniqueId id;
    at::Tensor bytes = IdTensor();
    meeting_->Recv(bytes, source);
    std::memcpy(&id, bytes.const_data_ptr(), sizeof(id));
    link = MakeLink(source, meeting_->rank());
    link->Begin(id, kReceiver);
  }
  link->Receive(tensor);
}

}  // namespace shoal
