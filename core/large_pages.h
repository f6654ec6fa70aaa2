// Memory for what is read from end to end again and again, such as weights in decoding: large pages
// save most look-ups of addresses.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace shoal {

// Uninitialised (numel) on the CPU, for which the kernel is asked for large pages (it may not have
// any). Less than a large page, or other devices: at::empty. Throws std::bad_alloc.
at::Tensor EmptyInLargePages(int64_t numel, at::ScalarType dtype, at::Device device = at::kCPU);

}  // namespace shoal
