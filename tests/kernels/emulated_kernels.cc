#include "tests/kernels/emulated_kernels.h"

#include <utility>

#include "tests/kernels/cuda_emulator.h"

// Beside nvcc's, where a build has both.
#define cuda emulated
#include "kernels/cuda/activation.cu"
#include "kernels/cuda/adamw_8bit.cu"
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/attention_backward.cu"
#include "kernels/cuda/dropout.cu"
#include "kernels/cuda/layer_norm.cu"
#include "kernels/cuda/optimizer_step.cu"
#include "kernels/cuda/paged_attention.cu"
#include "kernels/cuda/quantized_blocks.cu"
#include "kernels/cuda/rms_norm.cu"
#include "kernels/cuda/rotary.cu"
#include "kernels/cuda/softmax_gradient.cu"
#include "kernels/cuda/split_masters.cu"
#include "kernels/cuda/sum_of_squares.cu"
#undef cuda

namespace shoal {

const DeviceKernels& EmulatedKernels() {
  static const DeviceKernels table =
      emulated::TableWith({.current_stream = [](int /*device_index*/) -> void* { return nullptr; },
                           .lock_pages = [](void*, int64_t) { return true; },
                           .unlock_pages = [](void*) {}});
  return table;
}

void SetEmulatorMemoryGuard(std::function<void(bool)> guard) {
  cuda_emulator::SetMemoryGuard(std::move(guard));
}

}  // namespace shoal
