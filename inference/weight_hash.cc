#include "inference/weight_hash.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include <ATen/ATen.h>

#include "core/random.h"
#include "core/status.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

// Constants of a bijection of 64-bit integers without pattern (Steele et al. 2014, SplitMix64).
constexpr uint64_t kIncrement = 0x9e3779b97f4a7c15u, kFirstFactor = 0xbf58476d1ce4e5b9u,
                   kSecondFactor = 0x94d049bb133111ebu;

uint64_t Mix(uint64_t x) {
  x += kIncrement;
  x = (x ^ (x >> 30)) * kFirstFactor;
  x = (x ^ (x >> 27)) * kSecondFactor;
  return x ^ (x >> 31);
}

template <class Bits>
uint64_t HashBits(uint64_t stream, int64_t begin, const void* data, int64_t count) {
  const Bits* bits = static_cast<const Bits*>(data);
  std::atomic<uint64_t> sum{0};
  ParallelFor(count, 1 << 15, [&](int64_t first, int64_t last) {
    uint64_t part = 0;
    // An odd factor a place: no element can change without the sum changing.
    for (int64_t i = first; i < last; ++i)
      part += (Mix(stream + static_cast<uint64_t>(begin + i)) | 1) * (uint64_t{bits[i]} + 1);
    sum += part;
  });
  return sum;
}

// The same by operators on int64, which wrap around as uint64 does.
constexpr int64_t kElementsAtOnce = int64_t{1} << 22;

int64_t Signed(uint64_t x) { return static_cast<int64_t>(x); }

// x ^ (x >> count), the shift being that of unsigned numbers.
Tensor XorShifted(const Tensor& x, int count) {
  const Tensor shifted = at::bitwise_right_shift(x, at::full({}, count, x.options()));
  return x.bitwise_xor(shifted.bitwise_and_(at::Scalar((int64_t{1} << (64 - count)) - 1)));
}

Tensor MixTensor(const Tensor& x) {
  const Tensor first = XorShifted(x + Signed(kIncrement), 30).mul_(Signed(kFirstFactor));
  return XorShifted(XorShifted(first, 27).mul_(Signed(kSecondFactor)), 31);
}

// () int64 on the device of `bits` (n), an integer of the elements' size each.
Tensor HashTensor(uint64_t stream, int64_t begin, const Tensor& bits) {
  const auto words = bits.options().dtype(at::kLong);
  const Tensor places =
      at::arange(bits.numel(), words).add_(Signed(stream + static_cast<uint64_t>(begin)));
  Tensor values = bits.to(at::kLong);
  if (bits.element_size() < 8)
    values = values.bitwise_and(at::Scalar((int64_t{1} << (8 * bits.element_size())) - 1));
  return (MixTensor(places).bitwise_or_(at::Scalar(int64_t{1})) * (values + 1)).sum();
}

at::ScalarType IntegerOfSize(int64_t bytes) {
  SHOAL_CHECK(bytes == 2 || bytes == 4 || bytes == 8) << bytes << " bytes an element";
  if (bytes == 8) return at::kLong;
  return bytes == 4 ? at::kInt : at::kShort;
}

}  // namespace

void WeightHash::Add(const std::string& name, int64_t begin, const Tensor& elements) {
  const uint64_t stream = Mix(StreamId(name));
  const int64_t count = elements.numel();
  if (!elements.is_cpu()) {
    const Tensor bits = elements.view(IntegerOfSize(elements.element_size())).view({-1});
    for (int64_t first = 0; first < count; first += kElementsAtOnce) {
      const Tensor sum = HashTensor(
          stream, begin + first, bits.narrow(0, first, std::min(kElementsAtOnce, count - first)));
      on_device_ = on_device_.defined() ? on_device_ + sum : sum;
    }
    return;
  }
  const void* data = elements.const_data_ptr();
  switch (IntegerOfSize(elements.element_size())) {
    case at::kShort:
      on_host_ += HashBits<uint16_t>(stream, begin, data, count);
      break;
    case at::kInt:
      on_host_ += HashBits<uint32_t>(stream, begin, data, count);
      break;
    default:
      on_host_ += HashBits<uint64_t>(stream, begin, data, count);
  }
}

uint64_t WeightHash::Total() const {
  if (!on_device_.defined()) return on_host_;
  return on_host_ + static_cast<uint64_t>(on_device_.item<int64_t>());
}

uint64_t HashElements(const std::string& name, int64_t begin, const Tensor& elements) {
  WeightHash hash;
  hash.Add(name, begin, elements);
  return hash.Total();
}

}  // namespace shoal
