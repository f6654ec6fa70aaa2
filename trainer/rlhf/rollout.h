// Answers to prompts, with all that learning from them needs. Every rank holds the same.
//
// Legend: N answers, A the longest answer's tokens, B rows of a micro-batch, T places.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/batch.h"
#include "inference/generator.h"
#include "parallel/device_mesh.h"
#include "trainer/block_runner.h"

namespace shoal {

struct Rollout {
  struct Row {
    int64_t prompt = 0;           // Its number in the PromptSet
    std::vector<int64_t> tokens;  // Prompt and answer
    int64_t prompt_length = 0;
    FinishReason finish_reason = FinishReason::kLength;

    int64_t answer_length() const { return static_cast<int64_t>(tokens.size()) - prompt_length; }
    std::span<const int64_t> answer() const { return std::span(tokens).subspan(prompt_length); }
  };
  int64_t number = 0;  // From 0 over the run
  std::vector<Row> rows;
  // Of the answers' tokens, by the names under which batches carry them: (N, A) float64, 0 past an
  // answer's end.
  std::map<std::string, at::Tensor> of_tokens;
  at::Tensor mask_NA;  // bool: places of tokens
  // Of those, what the model reads beside or instead of tokens; (N, A, ...).
  std::vector<std::string> inputs;
  at::Tensor episodes_NA;  // int32, or undefined: a row's places see those of their episode alone
  at::Tensor rewards_N;    // float64

  int64_t size() const { return static_cast<int64_t>(rows.size()); }
};

// Names in Rollout::of_tokens.
inline constexpr char kRolloutLogprobs[] = "rollout_logprobs";  // As generated
inline constexpr char kOldLogprobs[] = "old_logprobs";  // By a training pass before the first step
inline constexpr char kReferenceLogprobs[] = "reference_logprobs";
inline constexpr char kAdvantages[] = "advantages";
inline constexpr char kOldValues[] = "old_values";
inline constexpr char kReturns[] = "returns";
inline constexpr char kLossWeights[] = "loss_weights";

// Sets rows, mask and kRolloutLogprobs. `prompts[i]` is the prompt's number of request i.
Rollout CollectRollout(int64_t number, std::span<const int64_t> prompts,
                       std::span<const GenerationRequest> requests,
                       std::vector<Generation> generations);

// Which answers make which micro-batch. An epoch's order is a permutation of the N answers, cut
// into steps of `global` answers; step s of it gives micro-batch m of data-parallel rank r the
// places s global + (m ranks + r) rows + [0, rows), as a DataLoader does.
struct RolloutLayout {
  int64_t rows = 1;           // Answers a rank and micro-batch
  int64_t micro_batches = 1;  // A rank and step
  int64_t rank = 0;           // Among the data-parallel ranks
  int64_t num_ranks = 1;
  int64_t multiple = 1;  // Places of a row are rounded up to a multiple of it
  uint64_t seed = 0;

  int64_t global() const { return rows * micro_batches * num_ranks; }
};

// The answers of a micro-batch. N must be a multiple of layout.global().
std::vector<int64_t> MicroBatchRows(const Rollout& rollout, const RolloutLayout& layout,
                                    int64_t epoch, int64_t step, int64_t micro_batch);

// Rows side by side, padded on the right: targets are the answers' tokens alone, and each of
// `names` and rollout.inputs is carried at the places of its tokens, 0 elsewhere.
Batch MakeRolloutBatch(const Rollout& rollout, std::span<const int64_t> rows, int64_t multiple,
                       std::span<const std::string> names);

// From the batch's documents: places from 0 in each.
void SetPositions(Batch& batch);

// What the head gives for every token of every answer, by passes over the micro-batches of epoch 0:
// (N, A) float64 on every rank. Collective over the mesh.
at::Tensor HeadOfRollout(BlockRunner& runner, DeviceMesh& mesh, const Rollout& rollout,
                         const RolloutLayout& layout, const BlockRunner::HeadOptions& options);

}  // namespace shoal
