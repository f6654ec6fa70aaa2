// What blocks keep for their backward passes, put aside until then: tensors in host memory in files
// (core/offload.h), tensors on a device in host memory or, by way of it, in files
// (core/device_activations.h).
//
//   auto kept = store->Make();
//   {
//     const TensorMemoryScope memory(kept.get());
//     out = Forward(in);
//   }
//   kept->Leave(out);  // Somebody else's
//   kept->PutAside();
//   // ... other blocks ...
//   kept->Bring();
//   Backward();
//
// Of what was put aside one after another, two are in memory at most. Of one thread.
#pragma once

#include <cstdint>
#include <memory>

#include <ATen/core/Tensor.h>

#include "core/tensor_memory.h"

namespace shoal {

class OffloadSpace;

// What a thread makes while it is the source of its tensors' memory and somebody (autograd) still
// holds.
class KeptTensors : public TensorMemorySource {
 public:
  // Smaller ones stay where they are.
  static constexpr int64_t kLeastBytes = 4096;

  // `tensor` is not, or is now, one of them.
  virtual void Leave(const at::Tensor& tensor) = 0;
  virtual void Join(const at::Tensor& tensor) = 0;
  // Those that are still alive. Nobody may touch them until they are back.
  virtual void PutAside() = 0;
  // Begins to do what Bring waits for.
  virtual void Prefetch() = 0;
  // Back for good. Throws OffloadError.
  virtual void Bring() = 0;
};

class ActivationStore {
 public:
  // Of tensors on `device`; they go to the space, which outlives the store, or, where it is null,
  // to host memory. Null: they are in host memory and stay there.
  static std::unique_ptr<ActivationStore> Of(at::Device device, OffloadSpace* disk);

  virtual ~ActivationStore() = default;
  // Outlived by the store.
  virtual std::unique_ptr<KeptTensors> Make() = 0;

  // From a device to host memory and from there back, since the beginning; 0 where tensors are in
  // host memory.
  virtual int64_t bytes_to_host() const { return 0; }
  virtual int64_t bytes_to_device() const { return 0; }
};

}  // namespace shoal
