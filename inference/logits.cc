#include "inference/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "core/status.h"
#include "kernels/simd/kernel_table.h"

namespace shoal {
namespace {

constexpr float kRuledOut = -std::numeric_limits<float>::infinity();

// Philox streams of sampling stand apart from those of initial weights and shuffles.
uint64_t SamplingSeed(uint64_t seed) { return seed ^ StreamId("inference.sampling"); }

// log of the sum of the exponentials, the terms in float32 (float64 for float64), the sum in
// float64.
double LogSumExp(std::span<const float> row) {
  const float highest = row[Argmax(row)];
  std::vector<float> terms(row.size());
  for (size_t i = 0; i < row.size(); ++i) terms[i] = row[i] - highest;
  simd::Kernels().exp(terms.data(), terms.data(), static_cast<int64_t>(terms.size()));
  double sum = 0;
  for (float term : terms) sum += term;
  return highest + std::log(sum);
}

double LogSumExp(std::span<const double> row) {
  const double highest = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (double logit : row) sum += std::exp(logit - highest);
  return highest + std::log(sum);
}

template <class T>
std::span<T> RowOf(const at::Tensor& row_V) {
  return {row_V.mutable_data_ptr<T>(), static_cast<size_t>(row_V.numel())};
}

}  // namespace

absl::Status CheckLogits(std::span<const float> logits) {
  // NaN is the only value that differs from itself; plain comparisons keep the loop vectorised.
  int64_t bad = 0, above = 0;
  for (float logit : logits) {
    bad += logit != logit || logit == -kRuledOut;
    above += logit != kRuledOut;
  }
  if (bad > 0) {
    const auto first = std::find_if(logits.begin(), logits.end(), [](float logit) {
      return std::isnan(logit) || logit == -kRuledOut;
    });
    return absl::InternalError(absl::StrCat(
        "the model's logits are not finite (", *first, " at token ", first - logits.begin(),
        "): the weights are damaged or overflow in this type; try float32"));
  }
  if (above == 0)
    return absl::InternalError("every token is ruled out: no logit is above -infinity");
  return absl::OkStatus();
}

absl::Status CheckSamplingOptions(const SamplingOptions& options) {
  auto refuse = [](absl::string_view name, double value, absl::string_view range) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", must be ", range));
  };
  // Below 1e-6 float32 logits overflow; the result is greedy decoding anyway.
  if (options.temperature != 0 &&
      !(options.temperature >= 1e-6 && std::isfinite(options.temperature))) {
    return refuse("temperature", options.temperature, "0 (greedy) or at least 1e-6");
  }
  if (options.top_k < 0) return refuse("top_k", options.top_k, "0 (off) or above");
  if (!(options.top_p > 0 && options.top_p <= 1))
    return refuse("top_p", options.top_p, "in (0, 1]");
  if (!(options.min_p >= 0 && options.min_p <= 1))
    return refuse("min_p", options.min_p, "in [0, 1]");
  if (!(options.repetition_penalty > 0) || !std::isfinite(options.repetition_penalty)) {
    return refuse("repetition_penalty", options.repetition_penalty, "above 0 (1: off)");
  }
  return absl::OkStatus();
}

void PenalizeRepetition(std::span<float> logits, std::span<const int64_t> seen, double penalty) {
  std::vector<int64_t> ids(seen.begin(), seen.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  const float factor = static_cast<float>(penalty);
  for (int64_t id : ids) {
    if (id < 0 || id >= static_cast<int64_t>(logits.size())) continue;
    logits[id] = logits[id] < 0 ? logits[id] * factor : logits[id] / factor;
  }
}

void ApplyTemperature(std::span<float> logits, double temperature) {
  const float divisor = static_cast<float>(temperature);
  for (float& logit : logits) logit /= divisor;
}

void KeepTopK(std::span<float> logits, int64_t k) {
  if (k >= static_cast<int64_t>(logits.size())) return;
  std::vector<float> values(logits.begin(), logits.end());
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  const float smallest_kept = values[k - 1];
  for (float& logit : logits) {
    if (logit < smallest_kept) logit = kRuledOut;
  }
}

void KeepTopP(std::span<float> logits, double p) {
  struct Candidate {
    float logit;
    uint32_t id;
  };
  std::vector<Candidate> candidates;
  double total = 0;
  const float highest = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == kRuledOut) continue;
    candidates.push_back({logits[i], static_cast<uint32_t>(i)});
    total += std::exp(static_cast<double>(logits[i]) - highest);
  }
  auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  // The nucleus is usually a few hundred tokens of a hundred thousand, so the order is found piece
  // by piece.
  size_t sorted = 0, kept = 0;
  double mass = 0;
  for (size_t piece = 128; kept < candidates.size(); piece *= 4) {
    if (kept == sorted) {
      sorted = std::min(candidates.size(), sorted + piece);
      std::partial_sort(candidates.begin() + kept, candidates.begin() + sorted, candidates.end(),
                        before);
    }
    while (kept < sorted && (kept == 0 || mass < p * total)) {
      mass += std::exp(static_cast<double>(candidates[kept++].logit) - highest);
    }
    if (kept < sorted || mass >= p * total) break;
  }
  for (size_t i = kept; i < candidates.size(); ++i) logits[candidates[i].id] = kRuledOut;
}

void KeepMinP(std::span<float> logits, double p) {
  // Softmax's denominators cancel: exp(s - highest) < p. The reference compares probabilities that
  // it has rounded to float32, so tokens within that of the limit may fall otherwise.
  const double lowest = *std::max_element(logits.begin(), logits.end()) + std::log(p);
  for (float& logit : logits) {
    if (logit < lowest) logit = kRuledOut;
  }
}

void ProcessLogits(std::span<float> logits, std::span<const int64_t> seen,
                   const SamplingOptions& options) {
  if (options.repetition_penalty != 1.0)
    PenalizeRepetition(logits, seen, options.repetition_penalty);
  if (options.temperature == 0) return;
  if (options.temperature != 1.0) ApplyTemperature(logits, options.temperature);
  if (options.top_k > 0) KeepTopK(logits, options.top_k);
  if (options.top_p < 1.0) KeepTopP(logits, options.top_p);
  if (options.min_p > 0) KeepMinP(logits, options.min_p);
}

int64_t Argmax(std::span<const float> logits) {
  constexpr size_t kLanes = 16;  // Their maxima in registers, then the first place of the highest
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, logits[0]);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j)
      lanes[j] = lanes[j] < logits[i + j] ? logits[i + j] : lanes[j];
  }
  float highest = *std::max_element(lanes, lanes + kLanes);
  for (; i < logits.size(); ++i) highest = std::max(highest, logits[i]);
  return std::find(logits.begin(), logits.end(), highest) - logits.begin();
}

int64_t SampleAt(std::span<const float> logits, double uniform) {
  const int64_t best = Argmax(logits);
  const float highest = logits[best];
  if (std::isinf(highest)) return best;  // Overflow of a finite row: all mass is there
  double total = 0;
  for (float logit : logits) {
    if (logit != kRuledOut) total += std::exp(static_cast<double>(logit) - highest);
  }
  const double target = uniform * total;
  double cumulative = 0;
  int64_t last_possible = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == kRuledOut) continue;
    const double weight = std::exp(static_cast<double>(logits[i]) - highest);
    if (weight == 0) continue;  // Underflow: its share is below what a double can tell from 0
    last_possible = static_cast<int64_t>(i);
    cumulative += weight;
    if (cumulative > target) return last_possible;
  }
  return last_possible;
}

absl::StatusOr<int64_t> ChooseToken(std::span<float> logits, std::span<const int64_t> sequence,
                                    const SamplingOptions& options, uint64_t stream) {
  SHOAL_RETURN_IF_ERROR(CheckLogits(logits));
  ProcessLogits(logits, sequence, options);
  if (options.temperature == 0) return Argmax(logits);
  return SampleAt(logits, Philox(SamplingSeed(options.seed), stream).Uniform(sequence.size()));
}

absl::StatusOr<TokenChoice> ChooseFromRow(const at::Tensor& logits_V,
                                          std::span<const int64_t> sequence,
                                          const SamplingOptions& options, uint64_t stream,
                                          bool want_logprob) {
  const bool is_double = logits_V.scalar_type() == at::kDouble;
  const at::Tensor model_V = want_logprob && !is_double ? logits_V.clone() : logits_V;
  const at::Tensor row_V = is_double ? logits_V.to(at::kFloat) : logits_V;
  TokenChoice choice;
  SHOAL_ASSIGN_OR_RETURN(choice.token, ChooseToken(RowOf<float>(row_V), sequence, options, stream));
  if (!want_logprob) return choice;
  if (is_double) {
    const std::span<const double> row = RowOf<double>(model_V);
    choice.logprob = row[choice.token] - LogSumExp(row);
  } else {
    const std::span<const float> row = RowOf<float>(model_V);
    choice.logprob = row[choice.token] - LogSumExp(row);
  }
  return choice;
}

}  // namespace shoal
