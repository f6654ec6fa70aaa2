// Words that choose what dropout drops, as core/random.h has them.
#pragma once

#include "kernels/cuda/cuda_device.h"

namespace shoal::cuda {

// Threefry-2x32 of 13 rounds (Salmon et al. 2011) at place (a, b) of the stream `key`.
__device__ inline uint32_t ThreefryWord(uint64_t key, uint32_t a, uint32_t b) {
  constexpr int kRotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const uint32_t keys[3] = {k0, k1, 0x1BD11BDAu ^ k0 ^ k1};
  uint32_t x = a + k0, y = b + k1;
  SHOAL_UNROLL
  for (int round = 0; round < 13; ++round) {
    const int turn_by = kRotations[round % 8];
    x += y;
    y = (y << turn_by | y >> (32 - turn_by)) ^ x;
    if (round % 4 != 3) continue;
    const uint32_t turn = round / 4 + 1;
    x += keys[turn % 3];
    y += keys[(turn + 1) % 3] + turn;
  }
  return x;
}

// The stream of one `word` of a stream.
__device__ inline uint64_t SubStream(uint64_t stream, uint64_t word) {
  uint64_t x = stream + (word + 1) * 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

}  // namespace shoal::cuda
