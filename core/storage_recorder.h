// Which memory of a device a thread's operators have made: libtorch tells of every operator's
// arguments and results (at::RecordFunction), and no allocator needs to be replaced.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

namespace shoal {

// What an operator returns was made, unless the thread handed it in before: to that or an earlier
// operator. So views of what was there before are not, nor is what operators take from elsewhere.
class StorageRecorder {
 public:
  explicit StorageRecorder(at::Device device) : device_(device) {}
  ~StorageRecorder() { Stop(); }
  StorageRecorder(const StorageRecorder&) = delete;
  StorageRecorder& operator=(const StorageRecorder&) = delete;

  // Of this thread, whose one recorder it is until it stops. In turns.
  void Start();
  void Stop();

  // As if it had been made; as if it had been there. What is not on the device is neither.
  void Add(const at::Tensor& tensor) { Know(tensor, /*made=*/true, /*again=*/true); }
  void Forget(const at::Tensor& tensor) { Know(tensor, /*made=*/false, /*again=*/true); }

  // Those made, of at least so many bytes, that somebody still holds; it then knows of nothing.
  std::vector<c10::Storage> Take(int64_t least_bytes);

 private:
  struct Call;  // Of an operator
  struct Known {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // So that its address is not another's
    bool made;
    size_t order;
  };

  static std::unique_ptr<at::ObserverContext> Enter(const at::RecordFunction& function);
  static void Leave(const at::RecordFunction& function, at::ObserverContext* context);
  void See(const c10::IValue& value, bool made);
  void Know(const at::Tensor& tensor, bool made, bool again);
  void Know(const c10::Storage& storage, bool made, bool again);

  at::Device device_;
  at::CallbackHandle handle_ = at::INVALID_CALLBACK_HANDLE;  // Invalid: stopped
  int depth_ = 0;                                            // Of operators that call operators
  std::unordered_map<const c10::StorageImpl*, Known> known_;
};

}  // namespace shoal
