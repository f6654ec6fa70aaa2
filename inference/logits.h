// From a row of logits to the next token, in Hugging Face's definitions and order (transformers,
// generation/logits_process.py): repetition penalty, then, when sampling, temperature, top-k,
// top-p, min-p.
//
// A row is (V) float32, changed in place; a token that is ruled out becomes -infinity. Rows are
// expected to be free of NaN and +infinity: ChooseToken checks it, the single steps do not.
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "core/random.h"

namespace shoal {

struct SamplingOptions {
  double temperature = 0;           // 0: greedy, the highest logit, the lowest id among equals
  int64_t top_k = 0;                // 0: off
  double top_p = 1.0;               // 1: off
  double min_p = 0;                 // 0: off
  double repetition_penalty = 1.0;  // 1: off
  uint64_t seed = 0;
};

// InvalidArgument naming the option that is out of its range.
absl::Status CheckSamplingOptions(const SamplingOptions& options);

// Of each distinct id of `seen` that is in [0, V): s < 0 ? s * penalty : s / penalty (Keskar et al.
// 2019).
void PenalizeRepetition(std::span<float> logits, std::span<const int64_t> seen, double penalty);

// s / temperature, temperature > 0.
void ApplyTemperature(std::span<float> logits, double temperature);

// Rules out what is below the k-th highest (ties of it stay). k >= 1.
void KeepTopK(std::span<float> logits, int64_t k);

// Nucleus (Holtzman et al. 2020): keeps the most likely tokens, each while those above it hold less
// than `p` of the mass; always the first. Among equal logits lower ids are kept first (the
// reference's sort is not stable and leaves that open).
void KeepTopP(std::span<float> logits, double p);

// Rules out what is less likely than `p` times the most likely token (Nguyen et al. 2024).
void KeepMinP(std::span<float> logits, double p);

// All of the above that `options` asks for. Under greedy decoding only the repetition penalty
// applies.
void ProcessLogits(std::span<float> logits, std::span<const int64_t> seen,
                   const SamplingOptions& options);

// The index of the highest logit; the lowest index among equals. V >= 1.
int64_t Argmax(std::span<const float> logits);

// Inverse of the cumulative softmax, in the order of ids, at `uniform` in [0, 1). Never a token at
// -infinity.
int64_t SampleAt(std::span<const float> logits, double uniform);

// Internal: a NaN or +infinity in the row, or nothing but -infinity.
absl::Status CheckLogits(std::span<const float> logits);

// The token that follows `sequence`. The random number is element sequence.size() of `stream`'s
// Philox stream under options.seed, so a sequence draws the same numbers in any batch. Errors:
// CheckLogits'.
absl::StatusOr<int64_t> ChooseToken(std::span<float> logits, std::span<const int64_t> sequence,
                                    const SamplingOptions& options, uint64_t stream);

struct TokenChoice {
  int64_t token = 0;
  double logprob = 0;  // log-softmax of the row at the token, before processing; 0 unless asked for
};

// ChooseToken of a contiguous row (V) of float32, which is used up, or of float64.
absl::StatusOr<TokenChoice> ChooseFromRow(const at::Tensor& logits_V,
                                          std::span<const int64_t> sequence,
                                          const SamplingOptions& options, uint64_t stream,
                                          bool want_logprob);

}  // namespace shoal
