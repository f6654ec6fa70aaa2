#include "trainer/federated/robust_aggregation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include <ATen/Dispatch.h>

#include "kernels/threads.h"
#include "trainer/federated/sorting_network.h"

namespace shoal {
namespace {

absl::Status CheckUpdates(absl::Span<const Tensor> updates) {
  if (updates.empty()) return absl::InvalidArgumentError("robust aggregation of no updates");
  for (size_t k = 0; k < updates.size(); ++k) {
    if (updates[k].numel() != updates[0].numel() ||
        updates[k].scalar_type() != updates[0].scalar_type()) {
      return absl::InvalidArgumentError(
          absl::StrCat("robust aggregation: update 0 has ", updates[0].numel(), " elements of ",
                       c10::toString(updates[0].scalar_type()), ", update ", k, " has ",
                       updates[k].numel(), " of ", c10::toString(updates[k].scalar_type())));
    }
    SHOAL_CHECK(updates[k].is_contiguous()) << "update " << k << " is not contiguous";
  }
  return absl::OkStatus();
}

template <typename T>
std::vector<const T*> Pointers(absl::Span<const Tensor> updates) {
  std::vector<const T*> pointers;
  for (const Tensor& update : updates) pointers.push_back(update.const_data_ptr<T>());
  return pointers;
}

template <typename T>
void LoadColumn(const T* in, int64_t count, T* out) {
  for (int64_t k = 0; k < count; ++k) {
    // + 0: minus zero would make equal numbers differ in their bits.
    out[k] = in[k] == in[k] ? in[k] + T{0} : std::numeric_limits<T>::infinity();
  }
}

template <typename T>
void Exchange(T* __restrict low, T* __restrict high, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    const T a = low[k], b = high[k];
    // Written as the processor's minimum and maximum are defined.
    const T smaller = b < a ? b : a, larger = a < b ? b : a;
    low[k] = smaller;
    high[k] = larger;
  }
}

// out[p] = mean of places [first, last) of the sorted updates[.][p], added in float64 in that
// order.
template <typename T>
void MeanOfSorted(absl::Span<const Tensor> updates, int first, int last, Tensor& out) {
  const int n = static_cast<int>(updates.size());
  const std::vector<const T*> in = Pointers<T>(updates);
  T* result = out.mutable_data_ptr<T>();
  const std::vector<CompareExchange> network = SortingNetwork(n, first, last);
  // All rows of a block stay in the second-level cache.
  const int64_t block =
      std::clamp<int64_t>((128 << 10) / (n * static_cast<int64_t>(sizeof(T))) / 16 * 16, 16, 1024);
  ParallelFor(out.numel(), 4 * block, [&](int64_t begin, int64_t end) {
    std::vector<T> rows(static_cast<size_t>(n * block));
    std::vector<double> sums(static_cast<size_t>(block));
    for (int64_t at = begin; at < end; at += block) {
      const int64_t size = std::min(block, end - at);
      for (int k = 0; k < n; ++k) LoadColumn(in[k] + at, size, rows.data() + k * block);
      for (const CompareExchange& step : network) {
        Exchange(rows.data() + step.low * block, rows.data() + step.high * block, size);
      }
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int k = first; k < last; ++k) {
        for (int64_t p = 0; p < size; ++p) sums[p] += static_cast<double>(rows[k * block + p]);
      }
      for (int64_t p = 0; p < size; ++p) result[at + p] = static_cast<T>(sums[p] / (last - first));
    }
  });
}

absl::Status WriteMeanOfSorted(absl::Span<const Tensor> updates, int first, int last, Tensor& out) {
  SHOAL_CHECK(out.is_contiguous() && out.numel() == updates[0].numel() &&
              out.scalar_type() == updates[0].scalar_type())
      << "robust aggregation of " << updates[0].sizes() << " into " << out.sizes();
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "robust aggregation",
                             [&] { MeanOfSorted<scalar_t>(updates, first, last, out); });
  return absl::OkStatus();
}

constexpr int64_t kDistanceBlock = 1024;

// ||a - b||^2 over at most kDistanceBlock elements. Sixteen sums side by side, added in order.
template <typename T>
double SquaredDistance(const T* a, const T* b, int64_t count) {
  constexpr int64_t kLanes = 16;
  std::array<T, kLanes> sums{};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T difference = a[k + lane] - b[k + lane];
      sums[lane] += difference * difference;
    }
  }
  double total = 0;
  for (T sum : sums) total += static_cast<double>(sum);
  for (; k < count; ++k) {
    const double difference = static_cast<double>(a[k]) - static_cast<double>(b[k]);
    total += difference * difference;
  }
  return total;
}

}  // namespace

absl::Status CoordinateMedian(absl::Span<const Tensor> updates, Tensor& out) {
  SHOAL_RETURN_IF_ERROR(CheckUpdates(updates));
  const int n = static_cast<int>(updates.size());
  return WriteMeanOfSorted(updates, (n - 1) / 2, n / 2 + 1, out);
}

absl::Status TrimmedMean(absl::Span<const Tensor> updates, double trim, Tensor& out) {
  SHOAL_RETURN_IF_ERROR(CheckUpdates(updates));
  if (!(trim >= 0 && trim < 0.5)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a mean trimmed by ", trim, " at each end: must be in [0, 0.5)"));
  }
  const int n = static_cast<int>(updates.size());
  const int dropped = static_cast<int>(std::floor(trim * n));
  return WriteMeanOfSorted(updates, dropped, n - dropped, out);
}

absl::Status AddSquaredDistances(absl::Span<const Tensor> updates, Tensor& distances) {
  SHOAL_RETURN_IF_ERROR(CheckUpdates(updates));
  const int64_t n = static_cast<int64_t>(updates.size());
  SHOAL_CHECK(distances.is_contiguous() && distances.scalar_type() == at::kDouble &&
              distances.dim() == 2 && distances.size(0) == n && distances.size(1) == n)
      << "distances of " << n << " updates in " << distances.sizes();
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) pairs.emplace_back(i, j);
  }
  double* sums = distances.mutable_data_ptr<double>();
  const int64_t numel = updates[0].numel();
  AT_DISPATCH_FLOATING_TYPES(updates[0].scalar_type(), "AddSquaredDistances", [&] {
    const std::vector<const scalar_t*> in = Pointers<scalar_t>(updates);
    ParallelFor(static_cast<int64_t>(pairs.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = 0; at < numel; at += kDistanceBlock) {
        const int64_t size = std::min(kDistanceBlock, numel - at);
        for (int64_t pair = begin; pair < end; ++pair) {
          const auto [i, j] = pairs[pair];
          sums[i * n + j] += SquaredDistance(in[i] + at, in[j] + at, size);
        }
      }
      for (int64_t pair = begin; pair < end; ++pair) {
        const auto [i, j] = pairs[pair];
        sums[j * n + i] = sums[i * n + j];
      }
    });
  });
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int>> SelectKrum(const Tensor& distances, int num_byzantine,
                                            int num_selected) {
  const int n = static_cast<int>(distances.size(0));
  SHOAL_CHECK(distances.is_contiguous() && distances.scalar_type() == at::kDouble &&
              distances.dim() == 2 && distances.size(1) == n)
      << "distances " << distances.sizes();
  if (num_byzantine < 0 || n < 2 * num_byzantine + 3) {
    return absl::InvalidArgumentError(absl::StrCat("Krum bears ", num_byzantine,
                                                   " Byzantine clients of at least ",
                                                   2 * num_byzantine + 3, ", there are ", n));
  }
  if (num_selected < 1 || num_selected > n - num_byzantine) {
    return absl::InvalidArgumentError(absl::StrCat("Krum selects ", num_selected, " of ", n,
                                                   " updates: must be between 1 and the ",
                                                   n - num_byzantine, " that are not Byzantine"));
  }
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double* values = distances.const_data_ptr<double>();
  std::vector<double> scores;
  for (int i = 0; i < n; ++i) {
    std::vector<double> others;
    for (int j = 0; j < n; ++j) {
      const double distance = values[i * n + j];
      if (j != i) others.push_back(std::isnan(distance) ? kInfinity : distance);
    }
    std::sort(others.begin(), others.end());
    scores.push_back(
        std::accumulate(others.begin(), others.begin() + (n - num_byzantine - 2), 0.0));
  }
  std::vector<int> best(n);
  std::iota(best.begin(), best.end(), 0);
  std::stable_sort(best.begin(), best.end(), [&](int a, int b) { return scores[a] < scores[b]; });
  best.resize(num_selected);
  if (!std::isfinite(scores[best.back()])) {
    return absl::FailedPreconditionError(
        absl::StrCat("Krum: fewer than ", num_selected, " of ", n,
                     " updates have finite distances to enough others"));
  }
  return best;
}

}  // namespace shoal
