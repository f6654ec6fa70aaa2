// Where the weights of one unit lie in its flat buffer, and who owns what of it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/parameter.h"

namespace shoal {

// Parameters end to end in declaration order, no gaps (so that a block's q, k and v matrices are
// one matrix), then padding to a multiple of the number of shards. Shard r is [r * shard_numel(),
// (r + 1) * shard_numel()): every rank's is of one size, at most num_shards - 1 elements of a unit
// are padding.
class FlatLayout {
 public:
  FlatLayout(std::vector<ParameterSpec> specs, int num_shards);

  std::span<const ParameterSpec> specs() const { return specs_; }
  int64_t offset(int parameter) const { return offsets_[parameter]; }
  int64_t numel() const { return offsets_.back(); }  // Without padding
  int64_t padded_numel() const { return shard_numel_ * num_shards_; }
  int64_t shard_numel() const { return shard_numel_; }
  int num_shards() const { return num_shards_; }

  // A part of one parameter: its elements [first, first + count), which are flat elements from
  // `offset`.
  struct Slice {
    int parameter;
    int64_t first;
    int64_t count;
    int64_t offset;
  };
  // The parts that lie in flat elements [begin, end), in order, empty ones left out.
  std::vector<Slice> Slices(int64_t begin, int64_t end) const;

  // What flat elements [begin, end) are of the whole weights: a run of one weight each, in order,
  // padding left out.
  struct Run {
    const ParameterSpec& spec;
    ElementRun whole;
    int64_t offset;  // From `begin`
  };
  std::vector<Run> RunsOf(int64_t begin, int64_t end) const;

  // View of parameter i, in its shape (transposed where it lies so), of a flat tensor of at least
  // numel() elements.
  Tensor View(const Tensor& flat, int parameter) const;

 private:
  std::vector<ParameterSpec> specs_;
  std::vector<int64_t> offsets_;  // specs_.size() + 1 entries
  int num_shards_;
  int64_t shard_numel_;
};

}  // namespace shoal
