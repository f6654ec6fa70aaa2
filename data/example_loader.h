// Micro-batches of examples as a function of the step, dealt out as DataLoader deals sequences: any
// layout of ranks sees the same global batches. A micro-batch is as long as its longest sequence.
//
// Legend: B sequences, T tokens, E examples (B = E, or 2 E: chosen and rejected in turn).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/batch.h"
#include "data/examples.h"

namespace shoal {

struct ExampleLoaderOptions {
  std::vector<std::string> train, eval;  // Shards
  ExampleKind kind = ExampleKind::kAnswers;
  // Sequences are read whole, to be scored at their last token, instead of predicted.
  bool whole = false;
  double holdout = 0;      // Where `eval` is empty: this share of the examples, the last ones
  int64_t seq_length = 0;  // Longer sequences are cut
  // T is a multiple of this, or seq_length: what tensor-parallel ranks share the rows by.
  int64_t length_multiple = 1;
  bool shuffle = true;
  uint64_t seed = 0;
  int examples = 1;       // A rank and micro-batch
  int micro_batches = 1;  // A step
  int rank = 0;           // Among the data-parallel ranks
  int num_ranks = 1;
};

class ExampleLoader {
 public:
  // InvalidArgument if no example is left.
  static absl::StatusOr<ExampleLoader> Create(const ExampleLoaderOptions& options);

  // This rank's micro-batches of optimizer step `step` (from 0). Beside tokens and targets (none
  // but the trained tokens; none at all if options.whole):
  //   example_E  int64: number of the example
  //   weight_E   float32: 1, or 0 for one that only fills a last evaluation batch
  //   last_B     int64, if options.whole: place of the sequence's last token
  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) const;
  // Beside them, a row an example: its prompt, and the (chosen) answer of the step's next example.
  absl::StatusOr<std::vector<Batch>> MismatchedBatches(int64_t step) const;
  // Of a micro-batch's first example, counted since training began.
  int64_t Position(int64_t step, int64_t micro_batch) const;
  // The first `max_batches` (0: all) of the held-out examples, as many on every rank. Their numbers
  // follow those of the training examples.
  absl::StatusOr<std::vector<Batch>> EvalBatches(int64_t max_batches) const;

  int64_t num_examples() const { return num_train_; }  // An epoch
  int64_t num_held_out() const;
  int64_t num_dropped() const { return train_->num_dropped(); }  // No answer left after cutting

 private:
  ExampleLoader() = default;
  int64_t ExampleAt(int64_t position) const;
  absl::StatusOr<std::vector<ExampleDataset::Sequence>> Read(int64_t example) const;
  Batch Lay(const std::vector<ExampleDataset::Sequence>& rows) const;
  absl::StatusOr<Batch> MakeBatch(const std::vector<int64_t>& examples) const;

  ExampleLoaderOptions options_;
  std::shared_ptr<const ExampleDataset> train_, eval_;  // eval_ null: the end of train_
  int64_t num_train_ = 0;
};

}  // namespace shoal
