// Host memory that a device's copies reach by themselves.
#pragma once

#include <cstdint>

#include "core/parameter.h"

namespace shoal {

// (numel) zeros in host memory. Its pages are locked where the device has kernels of ours that can
// (CUDA: cudaHostRegister), so that non-blocking copies between it and `device` do not hold up the
// host; else such copies wait, and give the same. libtorch's own pinned memory comes in powers of
// two of bytes, which is too much for what is as large as a model.
Tensor LockedZeros(int64_t numel, at::ScalarType dtype, at::Device device);

}  // namespace shoal
