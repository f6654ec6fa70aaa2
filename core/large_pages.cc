#include "core/large_pages.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

namespace shoal {

at::Tensor EmptyInLargePages(int64_t numel, at::ScalarType dtype, at::Device device) {
  constexpr size_t kPage = size_t{2} << 20;
  const auto options = at::TensorOptions(dtype).device(device);
  const size_t bytes = static_cast<size_t>(numel) * c10::elementSize(dtype);
  if (!device.is_cpu() || bytes < kPage) return at::empty({numel}, options);
  const size_t whole = (bytes + kPage - 1) / kPage * kPage;
  void* memory = std::aligned_alloc(kPage, whole);
  if (memory == nullptr) throw std::bad_alloc();
  madvise(memory, whole, MADV_HUGEPAGE);  // A wish: nothing depends on it
  return at::from_blob(
      memory, {numel}, [](void* address) { std::free(address); }, options);
}

}  // namespace shoal
