#include "core/device_activations.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/offload.h"
#include "core/status.h"
#include "core/storage_recorder.h"

namespace shoal {
namespace {

constexpr int64_t kAlignment = 256;  // Of a storage's bytes among those of a block

// (bytes) of a storage that begins at `begin` of its block's.
struct StoragePlace {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  int64_t begin;
  int64_t bytes;
  c10::Storage held = {};  // While it is copied
};

at::Tensor DeviceBytes(int64_t bytes, at::Device device) {
  return at::empty({bytes}, at::TensorOptions(at::kByte).device(device));
}

at::Tensor BytesOf(const c10::Storage& storage, int64_t bytes) {
  return DeviceBytes(0, storage.device()).set_(storage, 0, {bytes}, {1});
}

// What was there before is given back, to whom drops it.
c10::DataPtr Exchange(const c10::Storage& storage, c10::DataPtr memory) {
  return storage.unsafeGetStorageImpl()->set_data_ptr(std::move(memory));
}

// (bytes), cut into chunks.
std::vector<at::Tensor> HostChunks(int64_t bytes, const at::TensorOptions& options) {
  std::vector<at::Tensor> chunks;
  for (; bytes > 0; bytes -= chunks.back().numel())
    chunks.push_back(at::empty({std::min(bytes, DeviceActivations::kChunkBytes)}, options));
  return chunks;
}

std::vector<at::Tensor> PinnedChunks(int64_t bytes) {
  return HostChunks(bytes, at::TensorOptions(at::kByte).pinned_memory(true));
}

// visit(bytes of a chunk, the same of the storage's), in turn, of what lies at a place.
template <class Visit>
void ForSlices(const std::vector<at::Tensor>& chunks, const StoragePlace& place,
               const at::Tensor& on_device, const Visit& visit) {
  constexpr int64_t kChunk = DeviceActivations::kChunkBytes;
  for (int64_t done = 0; done < place.bytes;) {
    const int64_t at = place.begin + done, offset = at % kChunk,
                  bytes = std::min(place.bytes - done, kChunk - offset);
    visit(chunks[at / kChunk].narrow(0, offset, bytes), on_device.narrow(0, done, bytes));
    done += bytes;
  }
}

}  // namespace

class DeviceKept final : public KeptTensors {
 public:
  explicit DeviceKept(DeviceActivations& store) : store_(store), recorder_(store.device_) {}
  ~DeviceKept() override;

  // Tensors in host memory are none of its.
  int64_t least_bytes() const override { return std::numeric_limits<int64_t>::max(); }
  c10::DataPtr Allocate(int64_t bytes) override;
  void Begin() override { recorder_.Start(); }
  void End() override { recorder_.Stop(); }

  void Leave(const at::Tensor& tensor) override { recorder_.Forget(tensor); }
  void Join(const at::Tensor& tensor) override { recorder_.Add(tensor); }
  void PutAside() override;
  void Prefetch() override;
  void Bring() override;

 private:
  friend class DeviceActivations;
  enum class State {
    kHere,
    kLeaving,  // On the device and, when the event is there, in the host's memory
    kAside,
    kComing,  // On the device when the event is there
  };

  int64_t bytes() const {
    return places_.empty() ? 0 : places_.back().begin + places_.back().bytes;
  }
  void LeaveDevice();
  void WriteToDisk();
  void ReadFromDisk();
  void BeginToCome();

  DeviceActivations& store_;
  StorageRecorder recorder_;
  State state_ = State::kHere;
  std::vector<StoragePlace> places_;
  std::vector<at::Tensor> chunks_;             // Page-locked, or in the memory of `on_disk_`
  std::unique_ptr<OffloadedTensors> on_disk_;  // Null: in host memory
  std::optional<c10::Event> copied_;
};

DeviceActivations::DeviceActivations(at::Device device, OffloadSpace* disk)
    : device_(device),
      disk_(disk),
      beside_(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)) {}

std::unique_ptr<KeptTensors> DeviceActivations::Make() {
  return std::make_unique<DeviceKept>(*this);
}

c10::Stream DeviceActivations::current() const {
  return c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
}

template <class Copies>
c10::Event DeviceActivations::Beside(const Copies& copies) const {
  c10::Event begin(device_.type()), end(device_.type());
  begin.record(current());
  begin.block(beside_);
  const c10::StreamGuard guard(beside_);
  copies();
  end.record(beside_);
  return end;
}

void DeviceActivations::Settle() {
  if (leaving_ != nullptr) std::exchange(leaving_, nullptr)->LeaveDevice();
}

DeviceKept::~DeviceKept() {
  if (store_.leaving_ == this) store_.leaving_ = nullptr;
  // Of a pass that failed: memory that copies go through is nobody else's before they are done.
  if (state_ != State::kLeaving && state_ != State::kComing) return;
  try {
    copied_->block(store_.current());
  } catch (...) {  // The device has failed; so does what the caller asks of it next
  }
}

c10::DataPtr DeviceKept::Allocate(int64_t bytes) {
  SHOAL_CHECK(bytes < 0) << "no host memory comes from here";
  return {};
}

void DeviceKept::PutAside() {
  store_.Settle();
  const at::NoGradGuard no_grad;
  int64_t end = 0;
  for (c10::Storage& storage : recorder_.Take(kLeastBytes)) {
    if (storage.data() == nullptr) continue;
    const auto size = static_cast<int64_t>(storage.nbytes());
    places_.push_back({.storage = storage.getWeakStorageImpl(), .begin = end, .bytes = size});
    places_.back().held = std::move(storage);
    end += (size + kAlignment - 1) / kAlignment * kAlignment;
  }
  if (places_.empty()) return;
  chunks_ = PinnedChunks(bytes());
  copied_ = store_.Beside([&] {
    for (const StoragePlace& place : places_) {
      ForSlices(chunks_, place, BytesOf(place.held, place.bytes),
                [](at::Tensor host, const at::Tensor& device) {
                  host.copy_(device, /*non_blocking=*/true);
                });
      store_.bytes_to_host_ += place.bytes;
    }
  });
  state_ = State::kLeaving;
  store_.leaving_ = this;
}

void DeviceKept::LeaveDevice() {
  copied_->block(store_.current());
  for (StoragePlace& place : places_) {
    Exchange(place.held, {nullptr, store_.device_});
    place.held = {};
  }
  state_ = State::kAside;
  if (store_.disk_ != nullptr) WriteToDisk();
}

void DeviceKept::WriteToDisk() {
  on_disk_ = std::make_unique<OffloadedTensors>(*store_.disk_);
  std::vector<at::Tensor> regions;
  {
    const TensorMemoryScope memory(on_disk_.get());
    regions = HostChunks(bytes(), at::TensorOptions(at::kByte));
  }
  copied_->synchronize();
  for (size_t i = 0; i < regions.size(); ++i) regions[i].copy_(chunks_[i]);
  chunks_ = std::move(regions);
  on_disk_->PutAside();
}

void DeviceKept::ReadFromDisk() {
  on_disk_->Bring();
  std::vector<at::Tensor> pinned = PinnedChunks(bytes());
  for (size_t i = 0; i < pinned.size(); ++i) pinned[i].copy_(chunks_[i]);
  chunks_ = std::move(pinned);
  on_disk_ = nullptr;
}

void DeviceKept::Prefetch() {
  if (state_ != State::kAside) return;
  store_.Settle();
  if (on_disk_)
    on_disk_->Prefetch();
  else
    BeginToCome();
}

void DeviceKept::BeginToCome() {
  const at::NoGradGuard no_grad;
  std::erase_if(places_, [](const StoragePlace& place) { return place.storage.expired(); });
  std::vector<at::Tensor> memory;  // Of the current stream, as what was there before
  for (StoragePlace& place : places_) {
    place.held = c10::Storage(place.storage.lock());
    memory.push_back(DeviceBytes(place.bytes, store_.device_));
    store_.bytes_to_device_ += place.bytes;
  }
  copied_ = store_.Beside([&] {
    for (size_t i = 0; i < places_.size(); ++i) {
      ForSlices(chunks_, places_[i], memory[i], [](const at::Tensor& host, at::Tensor device) {
        device.copy_(host, /*non_blocking=*/true);
      });
    }
  });
  for (size_t i = 0; i < places_.size(); ++i)
    Exchange(places_[i].held, Exchange(memory[i].storage(), {nullptr, store_.device_}));
  chunks_.clear();  // Its allocator knows which stream still reads it
  state_ = State::kComing;
}

void DeviceKept::Bring() {
  if (state_ == State::kHere) return;
  if (state_ == State::kAside) {
    store_.Settle();
    if (on_disk_) ReadFromDisk();
    BeginToCome();
  }
  if (store_.leaving_ == this) store_.leaving_ = nullptr;
  copied_->block(store_.current());
  places_.clear();
  chunks_.clear();
  state_ = State::kHere;
}

}  // namespace shoal
