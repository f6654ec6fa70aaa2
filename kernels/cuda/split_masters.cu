// Master weights and the 17 bits of them that their bfloat16 roundings do not say
// (parallel/split_bits.h), an element a thread, a word of signs a warp.
#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {
namespace {

__device__ inline uint32_t WidenedBits(uint16_t rounded) {
  return static_cast<uint32_t>(rounded) << 16;
}

// The element of this thread, of all elements: warps begin where words of signs do.
__device__ inline int64_t ElementOfThread(const DeviceMasters& m) {
  return m.begin / 32 * 32 + static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
}

__global__ void JoinElements(DeviceMasters m) {
  const int64_t at = ElementOfThread(m), i = at - m.begin;
  if (i < 0 || i >= m.n) return;
  const uint32_t sign = m.signs[at / 32] >> (at % 32) & 1;
  m.bits[i] = WidenedBits(m.rounded[i]) + m.low[at] - (sign << 16);
}

__global__ void SplitElements(DeviceMasters m) {
  const int64_t at = ElementOfThread(m), i = at - m.begin;
  const bool mine = i >= 0 && i < m.n;
  int32_t rest = mine ? static_cast<int32_t>(m.bits[i] - WidenedBits(m.rounded[i])) : 0;
  if (rest < -(1 << 16) || rest >= 1 << 16) rest = 0;
  if (mine) m.low[at] = static_cast<uint16_t>(rest);
  const unsigned of_run = __ballot_sync(0xffffffffu, mine);
  const unsigned negative = __ballot_sync(0xffffffffu, rest < 0);
  if (at % 32 == 0 && of_run != 0) m.signs[at / 32] = (m.signs[at / 32] & ~of_run) | negative;
}

void ForMasters(void (*kernel)(DeviceMasters), const DeviceCall& call, const DeviceMasters& m) {
  if (m.n == 0) return;
  Launch(kernel, Grid(CeilDivide(m.begin % 32 + m.n, kRowThreads)), kRowThreads, 0, call.stream, m);
}

}  // namespace

void JoinMasters(const DeviceCall& call, const DeviceMasters& masters) {
  ForMasters(JoinElements, call, masters);
}

void SplitMasters(const DeviceCall& call, const DeviceMasters& masters) {
  ForMasters(SplitElements, call, masters);
}

}  // namespace shoal::cuda
