// Which devices have fused kernels of ours (device_kernel_table.h).
//
//   if (const DeviceKernels* device = DeviceKernelsFor(x))
//     device->gelu(CallOn(x), x.const_data_ptr(), y.mutable_data_ptr(), x.numel(), tanh);
//
// All operands of a call lie on x's device, which must be the current one.
#pragma once

#include <c10/core/DeviceType.h>

#include "core/parameter.h"
#include "kernels/device_kernel_table.h"

namespace shoal {

// The table for tensors on devices of this type, from now on; null: none. It must outlive its uses.
void RegisterDeviceKernels(c10::DeviceType type, const DeviceKernels* kernels);

// Null where there are none for x's device, or for its dtype (float64): kernels/fused.h serves the
// CPU, reference.h the rest.
const DeviceKernels* DeviceKernelsFor(const Tensor& x);
// The device's, whatever the dtype.
const DeviceKernels* DeviceKernelsFor(c10::DeviceType type);

// Whether a fused kernel serves x, on the CPU or another device.
bool HasKernels(const Tensor& x);

// The native handle of the current stream of x's device, which must have kernels.
void* StreamOf(const Tensor& x);

// For a dtype that has kernels.
ElementType ElementTypeOf(at::ScalarType dtype);
DeviceCall CallOn(const Tensor& x);

}  // namespace shoal
