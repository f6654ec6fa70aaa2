// Continues token sequences with a model: requests in, tokens out.
//
//   Generator generator(model, weights);
//   SHOAL_ASSIGN_OR_RETURN(std::vector<Generation> results, generator.Generate(requests));
//
// A batch runs in lockstep over one key-value cache: the prompts, padded on the right, in one pass
// of which the head sees each row's last place only, then one token a row and pass. A row that is
// done keeps its place until its batch is done. What a request yields depends on its own seed and
// stream alone, not on what shares its batch (up to the rounding of products of another shape).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/status.h"
#include "inference/logits.h"
#include "models/forward.h"

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
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;  // The first of each sequence is the prefill's
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

class Generator {
 public:
  struct Options {
    int64_t max_batch_size = 32;  // Sequences that run together; more wait
  };

  // `model` and `weights` (ModelWeights, or any views gathered from shards) must outlive the
  // generator. Weights and cache are of the first weight's dtype and device.
  Generator(const Model& model, std::span<const std::vector<Parameter>> weights);
  Generator(const Model& model, std::span<const std::vector<Parameter>> weights,
            const Options& options);

  // One result a request, in their order. InvalidArgument names the request and what is wrong with
  // it: an empty prompt, an id outside of the vocabulary, a prompt that leaves no position for a
  // new token, sampling options out of range. ResourceExhausted: no memory for the cache. Internal:
  // logits that are not finite.
  absl::StatusOr<std::vector<Generation>> Generate(std::span<const GenerationRequest> requests);

  // Summed over all calls of Generate.
  const GenerationStatistics& statistics() const { return statistics_; }

 private:
  struct Row;
  absl::Status Check(const GenerationRequest& request) const;
  absl::Status GenerateBatch(std::span<Row> rows);
  Tensor Prefill(std::span<Row> rows, KeyValueCache& cache) const;
  Tensor Step(std::span<Row> rows, KeyValueCache& cache, Batch& batch) const;
  absl::Status ChooseTokens(std::span<Row> rows, const Tensor& logits_BV);

  const Model& model_;
  std::span<const std::vector<Parameter>> weights_;
  Options options_;
  GenerationStatistics statistics_;
};

}  // namespace shoal
