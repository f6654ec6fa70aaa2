#include "core/storage_recorder.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace shoal {
namespace {

thread_local StorageRecorder* recorder_of_this_thread = nullptr;

}  // namespace

struct StorageRecorder::Call final : public at::ObserverContext {
  explicit Call(StorageRecorder* recorder) : recorder(recorder) {}
  StorageRecorder* recorder;
};

void StorageRecorder::Start() {
  if (handle_ != at::INVALID_CALLBACK_HANDLE) return;
  SHOAL_CHECK(recorder_of_this_thread == nullptr) << "two recorders of one thread";
  recorder_of_this_thread = this;
  handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&Enter, &Leave)
                                           .needsInputs(true)
                                           .needsOutputs(true)
                                           .scopes({at::RecordScope::FUNCTION}));
}

void StorageRecorder::Stop() {
  if (handle_ == at::INVALID_CALLBACK_HANDLE) return;
  at::removeCallback(std::exchange(handle_, at::INVALID_CALLBACK_HANDLE));
  recorder_of_this_thread = nullptr;
}

std::unique_ptr<at::ObserverContext> StorageRecorder::Enter(const at::RecordFunction& function) {
  StorageRecorder* recorder = recorder_of_this_thread;
  if (recorder == nullptr) return nullptr;
  // What an operator hands to another it has from the thread, or made: libtorch's own kernels
  // allocate past the dispatcher.
  if (recorder->depth_++ == 0) {
    for (const c10::IValue& value : function.inputs()) recorder->See(value, /*made=*/false);
  }
  return std::make_unique<Call>(recorder);
}

void StorageRecorder::Leave(const at::RecordFunction& function, at::ObserverContext* context) {
  if (context == nullptr) return;
  StorageRecorder* recorder = static_cast<Call*>(context)->recorder;
  --recorder->depth_;
  for (const c10::IValue& value : function.outputs()) recorder->See(value, /*made=*/true);
}

void StorageRecorder::See(const c10::IValue& value, bool made) {
  if (value.isTensor()) {
    Know(value.toTensor(), made, /*again=*/false);
  } else if (value.isStorage()) {
    Know(value.toStorage(), made, /*again=*/false);
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      if (element.isNone()) continue;   // Of optional tensors
      if (!element.isTensor()) return;  // Numbers
      Know(element.toTensor(), made, /*again=*/false);
    }
  }
}

void StorageRecorder::Know(const at::Tensor& tensor, bool made, bool again) {
  if (tensor.defined() && tensor.has_storage()) Know(tensor.storage(), made, again);
}

void StorageRecorder::Know(const c10::Storage& storage, bool made, bool again) {
  if (storage.device() != device_) return;
  const auto [known, is_new] = known_.try_emplace(
      storage.unsafeGetStorageImpl(), Known{storage.getWeakStorageImpl(), made, known_.size()});
  if (!is_new && again) known->second.made = made;
}

std::vector<c10::Storage> StorageRecorder::Take(int64_t least_bytes) {
  std::vector<std::pair<size_t, c10::Storage>> alive;
  for (auto& [address, known] : std::exchange(known_, {})) {
    if (!known.made) continue;
    c10::intrusive_ptr<c10::StorageImpl> storage = known.storage.lock();
    if (storage && static_cast<int64_t>(storage->nbytes()) >= least_bytes)
      alive.emplace_back(known.order, std::move(storage));
  }
  // The order in which they were made: a run does the same as the last.
  std::sort(alive.begin(), alive.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<c10::Storage> storages;
  for (auto& [order, storage] : alive) storages.push_back(std::move(storage));
  return storages;
}

}  // namespace shoal
