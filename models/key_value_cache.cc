#include "models/key_value_cache.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/status.h"

namespace shoal {

KeyValueCache::KeyValueCache(const Options& options)
    : options_(options), lengths_(options.batch_size, 0) {
  const std::vector<int64_t> shape = {options.batch_size, options.max_length,
                                      options.num_key_value_heads, options.head_dim};
  const auto tensor_options = at::TensorOptions(options.dtype).device(options.device);
  for (int64_t i = 0; i < options.num_layers; ++i) {
    keys_.push_back(at::empty(shape, tensor_options));
    values_.push_back(at::empty(shape, tensor_options));
  }
}

KeyValueCache::View KeyValueCache::Append(int64_t layer, const Tensor& k_BTKH,
                                          const Tensor& v_BTKH) {
  const int64_t num_rows = options_.batch_size, num_tokens = k_BTKH.size(1);
  const int64_t end = longest() + num_tokens;
  SHOAL_CHECK(k_BTKH.size(0) == num_rows && end <= options_.max_length)
      << k_BTKH.size(0) << " rows of " << end << " places, the cache has " << num_rows << " of "
      << options_.max_length;
  const at::NoGradGuard no_grad;
  Tensor &keys = keys_[layer], &values = values_[layer];
  const bool even =
      std::all_of(lengths_.begin(), lengths_.end(), [&](int64_t n) { return n == lengths_[0]; });
  if (even) {
    keys.narrow(1, end - num_tokens, num_tokens).copy_(k_BTKH);
    values.narrow(1, end - num_tokens, num_tokens).copy_(v_BTKH);
  } else {
    for (int64_t row = 0; row < num_rows; ++row) {
      keys[row].narrow(0, lengths_[row], num_tokens).copy_(k_BTKH[row]);
      values[row].narrow(0, lengths_[row], num_tokens).copy_(v_BTKH[row]);
    }
  }
  Tensor lengths_B = at::empty({num_rows}, at::kLong);
  for (int64_t row = 0; row < num_rows; ++row)
    lengths_B.mutable_data_ptr<int64_t>()[row] = lengths_[row] + num_tokens;
  return {.k_BSKH = keys.narrow(1, 0, end),
          .v_BSKH = values.narrow(1, 0, end),
          .lengths_B = lengths_B.to(options_.device)};
}

void KeyValueCache::Advance(int64_t num_tokens) {
  for (int64_t& length : lengths_) length += num_tokens;
}

int64_t KeyValueCache::longest() const {
  return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
}

void KeyValueCache::SetLength(int64_t row, int64_t length) {
  SHOAL_CHECK(length >= 0 && length <= lengths_[row]) << length << " of " << lengths_[row];
  lengths_[row] = length;
}

}  // namespace shoal
