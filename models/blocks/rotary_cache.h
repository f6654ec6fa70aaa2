// The cosines and sines that a model's layers share, made for as many positions as have been asked
// for.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "kernels/rotary.h"
#include "models/rope.h"

namespace shoal {

// Thread-safe.
class RotaryCache {
 public:
  RotaryCache(const RopeOptions& rope, int64_t head_dim, int64_t max_positions)
      : rope_(rope), head_dim_(head_dim), max_positions_(max_positions) {}

  // A table on x's device, in the precision that goes with x's dtype, that covers `positions_BT`,
  // which are in host memory and may lie past max_positions.
  RotaryTable For(const Tensor& x, const Tensor& positions_BT);

 private:
  using Key = std::pair<at::ScalarType, int>;  // dtype, device number or -1

  const RopeOptions rope_;
  const int64_t head_dim_;
  const int64_t max_positions_;
  std::mutex mutex_;
  std::map<Key, RotaryTable> tables_;
};

}  // namespace shoal
