// A model that reads sequences piece by piece and says what follows: the forward pass under every
// way of decoding.
//
// [Note: the same bits in any company]
// A pass takes pieces of up to kMaxRowsOfEqualBits (kernels/matmul.h) tokens together, or one
// longer piece alone. So, in float32 and bfloat16 on one machine, the logits after a sequence
// depend to the last bit on how that sequence was cut into pieces and on nothing else: not on what
// else is read, in which order, or on the number of threads. In float64, and where another library
// was chosen for products (SetMatMulBackend), they do up to rounding; and so on a device, where
// libraries choose a product's kernel by its size and passes may be longer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/forward.h"

namespace shoal {

class CachedModel {
 public:
  // What is borrowed outlives this. `tensor`: what the model was built for, without sequence
  // parallelism; its ranks make the same calls. Null: one rank holds each matrix whole. The cache
  // is of the first weight's dtype.
  CachedModel(const Model& model, std::span<const std::vector<Parameter>> weights,
              const TensorParallel* tensor = nullptr);

  using Sequence = KeyValueCache::Sequence;
  struct Piece {
    Sequence sequence;
    std::span<const int64_t> tokens;  // At least one; read behind what the sequence holds
  };
  // Logits (pieces, V) of the token after each piece, float32 (float64 in float64), in host memory.
  // Each sequence at most once. Throws std::bad_alloc, c10::Error.
  Tensor Read(std::span<const Piece> pieces);

  KeyValueCache& cache() { return cache_; }
  const KeyValueCache& cache() const { return cache_; }
  const Model& model() const { return model_; }

 private:
  Tensor ReadTogether(std::span<const Piece> pieces);
  bool on_host() const { return cache_.options().device.is_cpu(); }

  const Model& model_;
  std::span<const std::vector<Parameter>> weights_;
  const TensorParallel* tensor_;
  KeyValueCache cache_;
};

}  // namespace shoal
