#include "kernels/cuda/cuda_kernels.h"

#include <c10/cuda/CUDAStream.h>

namespace shoal::cuda {
namespace {

void* CurrentCudaStream(int device_index) {
  return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device_index)).stream();
}

}  // namespace

const DeviceKernels& Kernels() {
  static const DeviceKernels table = TableWith(&CurrentCudaStream);
  return table;
}

}  // namespace shoal::cuda
