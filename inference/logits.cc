#include "inference/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/status.h"

namespace shoal {
namespace {

constexpr float kRuledOut = -std::numeric_limits<float>::infinity();

// Philox streams of sampling stand apart from those of initial weights and shuffles.
uint64_t SamplingSeed(uint64_t seed) { return seed ^ StreamId("inference.sampling"); }

absl::Status CheckRow(std::span<const float> logits) {
  bool any = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == -kRuledOut) {
      return absl::InternalError(
          absl::StrCat("the model's logits are not finite (", logits[i], " at token ", i,
                       "): the weights are damaged or overflow in this type; try float32"));
    }
    any |= logits[i] != kRuledOut;
  }
  if (!any) return absl::InternalError("every token is ruled out: no logit is above -infinity");
  return absl::OkStatus();
}

}  // namespace

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

void ProcessLogits(std::span<float> logits, std::span<const int64_t> seen,
                   const SamplingOptions& options) {
  if (options.repetition_penalty != 1.0)
    PenalizeRepetition(logits, seen, options.repetition_penalty);
  if (options.temperature == 0) return;
  if (options.temperature != 1.0) ApplyTemperature(logits, options.temperature);
  if (options.top_k > 0) KeepTopK(logits, options.top_k);
  if (options.top_p < 1.0) KeepTopP(logits, options.top_p);
}

int64_t Argmax(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
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
  SHOAL_RETURN_IF_ERROR(CheckRow(logits));
  ProcessLogits(logits, sequence, options);
  if (options.temperature == 0) return Argmax(logits);
  return SampleAt(logits, Philox(SamplingSeed(options.seed), stream).Uniform(sequence.size()));
}

}  // namespace shoal
