#include "models/shared_rows.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>

#include "kernels/take_rows.h"

namespace shoal {

std::optional<SharedRows> ShareRows(const Batch& batch, int64_t multiple) {
  if (!batch.lengths_B.defined() || batch.documents_BT.defined()) return std::nullopt;
  const int64_t B = batch.tokens_BT.size(0), T = batch.tokens_BT.size(1);
  const int64_t* tokens = batch.tokens_BT.const_data_ptr<int64_t>();
  const int64_t* lengths = batch.lengths_B.const_data_ptr<int64_t>();
  const auto sequence = [&](int64_t b) { return std::span(tokens + b * T, lengths[b]); };

  // In lexicographic order a sequence has its longest common beginning with the one before it.
  std::vector<int64_t> order(B);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::ranges::lexicographical_compare(sequence(a), sequence(b));
  });
  at::Tensor rows_BT = at::zeros({B * T}, at::kLong);
  auto* rows = rows_BT.mutable_data_ptr<int64_t>();
  std::vector<int64_t> places;
  for (int64_t i = 0; i < B; ++i) {
    const int64_t b = order[i];
    int64_t t = 0;
    if (i > 0) {
      const int64_t before = order[i - 1];
      t = std::ranges::mismatch(sequence(b), sequence(before)).in1 - sequence(b).begin();
      std::copy_n(rows + before * T, t, rows + b * T);
    }
    for (; t < lengths[b]; ++t) {
      rows[b * T + t] = static_cast<int64_t>(places.size());
      places.push_back(b * T + t);
    }
  }
  if (places.empty()) return std::nullopt;
  const auto count = static_cast<int64_t>(places.size());
  places.resize((count + multiple - 1) / multiple * multiple, places[0]);
  if (10 * static_cast<int64_t>(places.size()) >= 9 * B * T) return std::nullopt;

  SharedRows shared{
      .num_sequences = B, .places_N = at::tensor(places, at::kLong), .rows_BT = std::move(rows_BT)};
  const auto of_rows = [&](const at::Tensor& x_BT) {
    return x_BT.reshape({-1}).index_select(0, shared.places_N).unsqueeze(0);
  };
  shared.tokens_1N = of_rows(batch.tokens_BT);
  shared.positions_1N = of_rows(batch.positions_BT);
  return shared;
}

at::Tensor SharedRows::Spread(const at::Tensor& x_1N) const {
  const at::Tensor x_NX = x_1N.squeeze(0);
  std::vector<int64_t> sizes = x_NX.sizes().vec();
  sizes[0] = num_sequences;
  sizes.insert(sizes.begin() + 1, rows_BT.numel() / num_sequences);
  return TakeRows(x_NX, rows_BT).view(sizes);
}

at::Tensor SharedRows::Gather(const at::Tensor& x_BT) const {
  return TakeRows(x_BT.flatten(0, 1), places_N).unsqueeze(0);
}

}  // namespace shoal
