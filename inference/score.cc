#include "inference/score.h"

#include <algorithm>
#include <new>
#include <numeric>

namespace shoal {
namespace {

absl::Status CheckRow(const Model& model, const std::vector<int64_t>& row, size_t index) {
  if (row.empty()) return absl::InvalidArgumentError(absl::StrCat("row ", index, " is empty"));
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] < 0 || row[i] >= model.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat("row ", index, ": token ", i, " is ", row[i],
                                                     ", the vocabulary has ", model.vocab_size(),
                                                     " entries"));
    }
  }
  // The last token is predicted, not read.
  if (static_cast<int64_t>(row.size()) - 1 > model.max_positions()) {
    return absl::InvalidArgumentError(absl::StrCat("row ", index, " has ", row.size(),
                                                   " tokens, the model has ", model.max_positions(),
                                                   " positions"));
  }
  return absl::OkStatus();
}

// Rows `which`, all of T + 1 tokens: log-probabilities (B, T) float64.
Tensor ScoreEqualRows(const Model& model, std::span<const std::vector<Parameter>> weights,
                      std::span<const std::vector<int64_t>> rows, std::span<const size_t> which) {
  const int64_t B = which.size();
  const int64_t T = rows[which[0]].size() - 1;
  Tensor ids_BT1 = at::empty({B, T + 1}, at::kLong);
  for (int64_t b = 0; b < B; ++b) {
    std::copy(rows[which[b]].begin(), rows[which[b]].end(),
              ids_BT1.mutable_data_ptr<int64_t>() + b * (T + 1));
  }
  const Batch batch = {.tokens_BT = ids_BT1.narrow(1, 0, T).contiguous(),
                       .targets_BT = ids_BT1.narrow(1, 1, T).contiguous(),
                       .positions_BT = at::arange(T).unsqueeze(0).repeat({B, 1}),
                       .num_targets = B * T};
  return ForwardAll(model, weights, batch, {.head_mode = HeadMode::kLogprobs})
      .logprobs_BT.to(at::kCPU, at::kDouble)
      .contiguous();
}

}  // namespace

absl::StatusOr<std::vector<std::vector<double>>> ScoreTokens(
    const Model& model, std::span<const std::vector<Parameter>> weights,
    std::span<const std::vector<int64_t>> rows, const ScoreOptions& options) {
  for (size_t i = 0; i < rows.size(); ++i) SHOAL_RETURN_IF_ERROR(CheckRow(model, rows[i], i));
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return rows[a].size() < rows[b].size(); });

  at::NoGradGuard no_grad;
  std::vector<std::vector<double>> results(rows.size());
  for (size_t first = 0; first < order.size();) {
    const int64_t length = rows[order[first]].size();
    const size_t most = std::max<int64_t>(1, options.max_batch_tokens / length);
    size_t last = first + 1;
    while (last < order.size() && last - first < most &&
           static_cast<int64_t>(rows[order[last]].size()) == length)
      ++last;
    const std::span<const size_t> which = std::span(order).subspan(first, last - first);
    first = last;
    if (length == 1) continue;  // Nothing to predict
    try {
      const Tensor logprobs_BT = ScoreEqualRows(model, weights, rows, which);
      for (size_t b = 0; b < which.size(); ++b) {
        const double* values = logprobs_BT.const_data_ptr<double>() + b * (length - 1);
        results[which[b]].assign(values, values + length - 1);
      }
    } catch (const c10::OutOfMemoryError& error) {
      return absl::ResourceExhaustedError(error.what_without_backtrace());
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory left to score rows of ", length, " tokens"));
    } catch (const c10::Error& error) {
      return absl::InternalError(error.what_without_backtrace());
    }
  }
  return results;
}

}  // namespace shoal
