#include "models/blocks/head_share.h"

#include <ATen/ops/tensor.h>

namespace shoal {

HeadShare::HeadShare(const ModelConfig& config, const TensorPlace& place)
    : place_(place),
      head_dim_(config.head_dim),
      group_(config.num_heads / config.num_key_value_heads) {
  const int64_t share = config.num_heads / place.size;
  first_query_ = place.rank * share;
  last_query_ = first_query_ + share;
  first_key_value_ = first_query_ / group_;
  last_key_value_ = (last_query_ - 1) / group_ + 1;
}

std::vector<TensorCut::Range> HeadShare::KeyValueRows() const {
  std::vector<TensorCut::Range> rows;
  for (int64_t head = first_key_value_; head < last_key_value_; ++head) {
    const int64_t first_reader = head * group_, end_of_readers = first_reader + group_;
    const TensorCut::Range range{
        .begin = head * head_dim_,
        .end = (head + 1) * head_dim_,
        .shared = first_reader < first_query_ || end_of_readers > last_query_,
        .owned = first_reader >= first_query_};
    const bool joins = !rows.empty() && !range.shared && !rows.back().shared;
    if (joins)
      rows.back().end = range.end;
    else
      rows.push_back(range);
  }
  return rows;
}

std::vector<std::vector<TensorCut::Range>> HeadShare::MatrixRanges() const {
  if (place_.size == 1) return {};
  const std::vector<TensorCut::Range> key_value = KeyValueRows();
  return {
      {{.begin = first_query_ * head_dim_, .end = last_query_ * head_dim_}}, key_value, key_value};
}

at::Tensor HeadShare::ForQueries(const at::Tensor& key_value_BTKH) const {
  if (serves_equally()) return key_value_BTKH;
  std::vector<int64_t> head_of_query;
  for (int64_t query = first_query_; query < last_query_; ++query)
    head_of_query.push_back(query / group_ - first_key_value_);
  return key_value_BTKH.index_select(
      2, at::tensor(head_of_query, at::TensorOptions(at::kLong).device(key_value_BTKH.device())));
}

}  // namespace shoal
