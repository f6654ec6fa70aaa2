#include "kernels/cuda/cuda_kernels.h"

#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

namespace shoal::cuda {
namespace {

void* CurrentCudaStream(int device_index) {
  return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device_index)).stream();
}

bool LockPages(void* address, int64_t bytes) {
  const bool locked = cudaHostRegister(address, static_cast<size_t>(bytes),
                                       cudaHostRegisterPortable) == cudaSuccess;
  if (!locked) (void)cudaGetLastError();  // Else the next call would report it
  return locked;
}

void UnlockPages(void* address) { (void)cudaHostUnregister(address); }

}  // namespace

const DeviceKernels& Kernels() {
  static const DeviceKernels table = TableWith({.current_stream = &CurrentCudaStream,
                                                .lock_pages = &LockPages,
                                                .unlock_pages = &UnlockPages});
  return table;
}

}  // namespace shoal::cuda
