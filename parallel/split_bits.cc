#include "parallel/split_bits.h"

#include <ATen/ATen.h>

#include "kernels/device_kernels.h"

namespace shoal {
namespace {

DeviceMasters OperandsOf(const SplitBits& bits, int64_t begin, const Tensor& masters,
                         const Tensor& rounded) {
  return {.begin = begin,
          .n = masters.numel(),
          .bits = static_cast<uint32_t*>(masters.mutable_data_ptr()),
          .rounded = static_cast<const uint16_t*>(rounded.const_data_ptr()),
          .low = static_cast<uint16_t*>(bits.low.mutable_data_ptr()),
          .signs = static_cast<uint32_t*>(bits.signs.mutable_data_ptr())};
}

Tensor WidenedBits(const Tensor& rounded) {
  return rounded.view(at::kShort).to(at::kInt).mul_(1 << 16);
}

// The bytes of `signs` that hold those of elements [begin, begin + n).
Tensor SignBytes(const SplitBits& bits, int64_t begin, int64_t n) {
  const int64_t first = begin / 8;
  return bits.signs.view(at::kByte).narrow(0, first, (begin + n + 7) / 8 - first);
}

Tensor PlacesInByte(const Tensor& bytes) {
  return at::ones({8}, bytes.options()).bitwise_left_shift(at::arange(8, bytes.options()));
}

// (8 bytes) bool
Tensor Unpacked(const Tensor& bytes) {
  return bytes.unsqueeze(1).bitwise_and(PlacesInByte(bytes)).ne(0).view({-1});
}

Tensor Packed(const Tensor& flags, const Tensor& like) {
  return flags.view({-1, 8}).to(at::kByte).mul_(PlacesInByte(like)).sum({1}).to(at::kByte);
}

}  // namespace

SplitBits SplitBits::Zeros(int64_t n, c10::Device device) {
  const at::TensorOptions on = at::TensorOptions().device(device);
  return {.low = at::zeros({n}, on.dtype(at::kShort)),
          .signs = at::zeros({(n + 31) / 32}, on.dtype(at::kInt))};
}

void SplitBits::Join(int64_t begin, const Tensor& rounded, const Tensor& masters) const {
  if (const DeviceKernels* device = DeviceKernelsFor(rounded))
    return device->join_masters(CallOn(rounded), OperandsOf(*this, begin, masters, rounded));
  const int64_t n = masters.numel();
  const Tensor sign = Unpacked(SignBytes(*this, begin, n)).narrow(0, begin % 8, n).to(at::kInt);
  const Tensor rest = low.narrow(0, begin, n).to(at::kInt).bitwise_and(0xFFFF) - sign * (1 << 16);
  masters.view(at::kInt).copy_(WidenedBits(rounded).add_(rest));
}

void SplitBits::Split(int64_t begin, const Tensor& masters, const Tensor& rounded) const {
  if (const DeviceKernels* device = DeviceKernelsFor(rounded))
    return device->split_masters(CallOn(rounded), OperandsOf(*this, begin, masters, rounded));
  const int64_t n = masters.numel();
  const Tensor rest = masters.view(at::kInt) - WidenedBits(rounded);
  rest.masked_fill_((rest < -(1 << 16)).logical_or_(rest >= 1 << 16), 0);
  low.narrow(0, begin, n).copy_(rest);
  const Tensor bytes = SignBytes(*this, begin, n), flags = Unpacked(bytes);
  flags.narrow(0, begin % 8, n).copy_(rest < 0);
  bytes.copy_(Packed(flags, bytes));
}

}  // namespace shoal
