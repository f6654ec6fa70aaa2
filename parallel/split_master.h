// Float32 master weights beside their bfloat16 rounding, held in 16 bits instead of 32
// (optimizer.master_weights: split).
//
// bits(master) = (bits(rounded) << 16) + low, with `low` an int16: rounding to nearest moves a
// number by at most half a step. The bits that come back are those that went in, whatever they
// were: the few masters of which this is not so (those halfway between two bfloat16 that were
// rounded down, one in about 131,000; NaN; denormals where the processor rounds them to zero) are
// kept whole in a list. On a device `low` has a bit more instead (split_bits.h).
#pragma once

#include <cstdint>
#include <vector>

#include "core/parameter.h"
#include "parallel/split_bits.h"

namespace shoal {

class SplitMaster {
 public:
  // Masters are zeros, as long as their roundings are.
  explicit SplitMaster(int64_t numel, c10::Device device = c10::kCPU);

  // masters (n) float32 := elements [begin, begin + n), whose roundings are `rounded` (n) bfloat16.
  void Join(int64_t begin, const Tensor& rounded, Tensor& masters) const;
  // Remembers what `rounded` (n) does not say of `masters` (n).
  void Split(int64_t begin, const Tensor& masters, const Tensor& rounded);

  int64_t numel() const { return bits_.low.numel(); }
  // Without the list, whose length depends on the numbers.
  int64_t nbytes() const { return BytesOf(numel(), !bits_.low.is_cpu()); }
  static int64_t BytesOf(int64_t numel, bool on_device) {
    return 2 * numel + (on_device ? (numel + 31) / 32 * 4 : 0);  // The low bits; their signs
  }
  int64_t kept_whole() const;  // Masters in the list

 private:
  struct Whole {
    int64_t at;
    uint32_t bits;
  };

  SplitBits bits_;                          // On the host without signs
  std::vector<std::vector<Whole>> wholes_;  // By blocks of kBlock elements, ascending
};

// A run of weights in master precision, held as a tensor or split.
struct MasterRun {
  Tensor plain;                  // (n) master dtype; undefined: split
  Tensor rounded;                // (n) compute dtype, or undefined: plain computes itself
  SplitMaster* split = nullptr;  // Null: plain
  int64_t begin = 0;             // Of `split`

  int64_t numel() const { return plain.defined() ? plain.numel() : rounded.numel(); }
  MasterRun Narrow(int64_t first, int64_t count) const;
  // The weights: `plain` itself, or a copy that Keep brings home.
  Tensor Read() const;
  // After weights = Read() was changed and `rounded` is its rounding.
  void Keep(const Tensor& weights) const;
  // The same where `rounded` is as it was.
  void RoundAndKeep(const Tensor& weights) const;
  // Calls visit(first, run) for pieces that are read in a buffer of moderate size; plain: for all.
  template <class Visit>
  void ForPieces(Visit&& visit) const {
    const int64_t all = numel();
    if (plain.defined()) return visit(int64_t{0}, *this);
    // A device's calls take longer to begin.
    const int64_t piece = rounded.is_cpu() ? 1 << 18 : 1 << 22;
    for (int64_t first = 0; first < all; first += piece)
      visit(first, Narrow(first, all - first < piece ? all - first : piece));
  }
};

}  // namespace shoal
