// Keys and values of the tokens that a model has read, for decoding.
//
// A pass over T new tokens a row: every layer calls Append, and after the last block the caller
// (ForwardAll, forward.h, does it) calls Advance(T). Rows of a batch may differ in length: pad the
// new tokens on the right, then tell each row's true length with SetLength. What lies past a row's
// length is never read.
//
// Legend: B rows, S places, T new tokens, K key-value heads, H head size.
#pragma once

#include <cstdint>
#include <vector>

#include "core/parameter.h"

namespace shoal {

class KeyValueCache {
 public:
  struct Options {
    int64_t num_layers = 0;
    int64_t batch_size = 0;
    int64_t max_length = 0;
    int64_t num_key_value_heads = 0;
    int64_t head_dim = 0;
    at::ScalarType dtype = at::kFloat;
    at::Device device = at::kCPU;
  };
  // 2 * num_layers * batch_size * max_length * num_key_value_heads * head_dim elements, allocated
  // at once.
  explicit KeyValueCache(const Options& options);

  struct View {
    Tensor k_BSKH, v_BSKH;  // S: the longest row, new tokens included
    Tensor lengths_B;       // int64, new tokens included
  };
  // Writes k, v (B, T, K, H) behind each row's tokens and returns all of `layer`. The rows must
  // have room.
  View Append(int64_t layer, const Tensor& k_BTKH, const Tensor& v_BTKH);
  // After the last layer: every row is T tokens longer.
  void Advance(int64_t num_tokens);

  const std::vector<int64_t>& lengths() const { return lengths_; }
  int64_t longest() const;
  // Forgets what is past `length`, at most the current one.
  void SetLength(int64_t row, int64_t length);
  const Options& options() const { return options_; }

 private:
  Options options_;
  std::vector<Tensor> keys_;  // A layer: (B, S_max, K, H)
  std::vector<Tensor> values_;
  std::vector<int64_t> lengths_;
};

}  // namespace shoal
