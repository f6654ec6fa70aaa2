// Random numbers as a function of (seed, stream, index): counter-based (Philox4x32-10, Salmon et
// al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). Any rank can draw any slice of a
// stream, so initial weights, shuffles and samples do not depend on how many ranks there are. There
// is no hidden generator state.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include <ATen/core/Tensor.h>

namespace shoal {

// A 64-bit stream number from a name, the same on every machine (FNV-1a).
uint64_t StreamId(std::string_view name);

class Philox {
 public:
  explicit Philox(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  // The four 32-bit words of block `index`.
  std::array<uint32_t, 4> Block(uint64_t index) const;
  // Element `index` of the stream, uniform over all 64-bit integers.
  uint64_t Bits(uint64_t index) const;
  // Element `index` of the stream, uniform in [0, 1) with 53 random bits.
  double Uniform(uint64_t index) const;

 private:
  uint64_t seed_;
  uint64_t stream_;
};

// A word of Threefry-2x32 after 13 rounds (of the same paper), the fewest that pass its tests: at
// place (a, b) of the stream `key`. Cheap enough, and of 32-bit operations alone, for a mask the
// size of the activations.
uint32_t ThreefryWord(uint64_t key, uint32_t a, uint32_t b);

// A stream of its own for each `word` (the finaliser of splitmix64, Steele et al. 2014).
uint64_t SubStream(uint64_t stream, uint64_t word);

// Fills contiguous `out` (any floating dtype) with elements [first, first + out.numel()) of the
// stream's N(0, stddev^2) numbers (Box-Muller on pairs of elements, computed in double, then
// rounded). A device's memory is filled from the host's, a piece at a time.
void FillNormal(at::Tensor& out, const Philox& philox, uint64_t first, double stddev);

}  // namespace shoal
