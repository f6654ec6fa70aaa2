// Continues token sequences with a model: requests in, tokens out.
//
//   Generator generator(model, weights);
//   SHOAL_ASSIGN_OR_RETURN(std::vector<Generation> results, generator.Generate(requests));
//
// Batching is continuous: a sequence that ends frees its place and its cache for one that waits.
// Prompts that several requests share are read once and their cache is shared. What a request
// yields depends on its own prompt, options, seed and stream alone, not on what runs beside it; to
// the last bit where [Note: the same bits in any company] of cached_model.h holds.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/status.h"
#include "inference/cached_model.h"
#include "inference/logits.h"
#include "kernels/matmul.h"

namespace shoal {

struct GenerationRequest {
  std::vector<int64_t> prompt = {};         // Token ids, at least one
  int64_t max_new_tokens = 128;             // At least 1
  SamplingOptions sampling = {};            // Greedy by default
  uint64_t stream = 0;                      // Samples of one prompt under one seed differ by this
  std::vector<int64_t> eos_token_ids = {};  // Any of them ends the sequence
  // Told of each new token, in order, as it is chosen; false ends the sequence (TextStream does at
  // a stop string). May be empty.
  std::function<bool(int64_t token)> on_token = nullptr;
  bool want_logprobs = false;  // Fill Generation::logprobs
};

enum class FinishReason {
  kEos,        // The last token is one of eos_token_ids
  kStopped,    // on_token returned false
  kLength,     // max_new_tokens
  kPositions,  // The sequence is as long as the model has positions
};

struct Generation {
  std::vector<int64_t> tokens;  // The new ones, an end-of-sequence token included
  // Of each of them, the model's own log-probability: log-softmax of the logits at temperature 1,
  // before any processor (what `shoal score` gives). Empty unless asked for.
  std::vector<double> logprobs;
  FinishReason finish_reason = FinishReason::kLength;
};

struct GenerationStatistics {
  int64_t prompt_tokens = 0;  // Read: those of shared prompts once
  int64_t new_tokens = 0;     // The first of each sequence is the prefill's
  double prefill_seconds = 0;
  double decode_seconds = 0;

  GenerationStatistics& operator+=(const GenerationStatistics& other);
  GenerationStatistics operator-(const GenerationStatistics& other) const;
};

// Beam search, as transformers' generate() has it (generation/utils.py, _beam_search).
struct BeamOptions {
  int64_t num_beams = 1;
  int64_t num_return_sequences = 1;  // At most num_beams
  double length_penalty = 1.0;       // A score is the sum of log-probabilities / tokens^this
  // When to stop: kNo once no running beam can improve on what is finished, judged by the present
  // length; kYes once num_beams are finished; kNever once none can at any length.
  enum class EarlyStopping { kNo, kYes, kNever };
  EarlyStopping early_stopping = EarlyStopping::kNo;
  // Whether these new tokens complete a sequence (a stop string, say), beside the request's
  // eos_token_ids. May be empty.
  std::function<bool(std::span<const int64_t> tokens)> is_complete = nullptr;
};

struct BeamResult {
  Generation generation;
  double score = 0;  // See length_penalty
};

class Generator {
 public:
  struct Options {
    int64_t max_batch_size = kMaxRowsOfEqualBits;  // Sequences that run together; more wait
    const TensorParallel* tensor = nullptr;        // See CachedModel
  };

  // `model` and `weights` (ModelWeights, or any views gathered from shards) must outlive the
  // generator.
  Generator(const Model& model, std::span<const std::vector<Parameter>> weights);
  Generator(const Model& model, std::span<const std::vector<Parameter>> weights,
            const Options& options);

  // One result a request, in their order. InvalidArgument names the request and what is wrong with
  // it: an empty prompt, an id outside of the vocabulary, a prompt that leaves no position for a
  // new token, sampling options out of range. ResourceExhausted: no memory for the cache. Internal:
  // logits that are not finite.
  absl::StatusOr<std::vector<Generation>> Generate(std::span<const GenerationRequest> requests);

  // The num_return_sequences best continuations, the best first. Of the request's sampling options
  // only the repetition penalty applies (a temperature is refused); on_token is not called, and
  // logprobs are not filled. Errors as Generate's.
  absl::StatusOr<std::vector<BeamResult>> SearchBeams(const GenerationRequest& request,
                                                      const BeamOptions& options);

  // Summed over all calls.
  const GenerationStatistics& statistics() const { return statistics_; }
  // Of keys and values, kept between calls.
  int64_t cache_bytes() const;

 private:
  struct Row;
  class Run;
  absl::Status Check(const GenerationRequest& request) const;
  absl::Status RunGuarded(const std::function<absl::Status(CachedModel&)>& work);

  const Model& model_;
  std::span<const std::vector<Parameter>> weights_;
  Options options_;
  GenerationStatistics statistics_;
  std::unique_ptr<CachedModel> cached_;  // Made by the first call
};

}  // namespace shoal
