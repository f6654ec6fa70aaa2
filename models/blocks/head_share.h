// Which attention heads a tensor-parallel rank computes.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/parameter.h"
#include "models/model_config.h"
#include "parallel/tensor_parallel.h"

namespace shoal {

// A rank's equal run of query heads, and the key-value heads that those read. Where key-value heads
// do not divide over the ranks, a head lies with every rank that reads it, and the first of them
// owns it.
class HeadShare {
 public:
  // The query heads must divide over place.size (BuildModel checks).
  HeadShare(const ModelConfig& config, const TensorPlace& place);

  int64_t first_query() const { return first_query_; }
  int64_t queries() const { return last_query_ - first_query_; }
  int64_t key_values() const { return last_key_value_ - first_key_value_; }

  // Rows of the q, k and v matrices: {q, k, v}, a head being head_dim rows. Empty on one rank.
  std::vector<std::vector<TensorCut::Range>> MatrixRanges() const;

  // Key-value heads that attention sees, and a cache holds: what ForQueries returns.
  int64_t attended_key_values() const { return serves_equally() ? key_values() : queries(); }

  // (B, T, K, H) as CausalAttention takes it beside this rank's queries: as it is if every
  // key-value head serves equally many of them, else one head a query.
  at::Tensor ForQueries(const at::Tensor& key_value_BTKH) const;

 private:
  std::vector<TensorCut::Range> KeyValueRows() const;
  bool serves_equally() const {
    return key_values() == 1 || (first_query_ % group_ == 0 && last_query_ % group_ == 0);
  }

  TensorPlace place_;
  int64_t head_dim_, group_;  // group_: query heads a key-value head
  int64_t first_query_, last_query_, first_key_value_, last_key_value_;
};

}  // namespace shoal
