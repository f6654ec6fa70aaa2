// Micro-batches as a function of the step: no state, so resuming is O(1) and every layout of ranks
// sees the same global batches.
//
// The order of an epoch is a permutation of its sequences (see sequence_sampler.h). Position p
// counts sequences since training began: epoch p / N, place p % N. With global batch G = ranks *
// micro_batches * rows, step s takes positions [s G, (s + 1) G); of these, micro-batch m of
// data-parallel rank r takes rows s G + (m * ranks + r) * rows + [0, rows). So 1 rank x 8 rows, 2
// ranks x 4 and 2 micro-batches x 4 are the same set in each step.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/batch.h"
#include "core/recipe.pb.h"
#include "data/prepare_data.h"
#include "data/sequence_sampler.h"
#include "data/token_dataset.h"

namespace shoal {

struct DataLoaderOptions {
  PreparedData prepared;
  DataSection data;
  uint64_t seed = 0;
  int rows = 1;           // Sequences a rank and micro-batch
  int micro_batches = 1;  // A step
  int rank = 0;           // Among the data-parallel ranks
  int num_ranks = 1;
};

// Rows `sequences` of `source` as a batch of data.seq_length, on the CPU; an index of -1 is a row
// without targets.
absl::StatusOr<Batch> ReadSequences(const SequenceSource& source, const DataSection& data,
                                    std::span<const int64_t> sequences);

class DataLoader {
 public:
  // Opens the shards. InvalidArgument if the data does not fill one sequence, or holdout takes all
  // of it.
  static absl::StatusOr<DataLoader> Create(const DataLoaderOptions& options);

  // This rank's micro-batches of optimizer step `step` (from 0), on the CPU; see core/batch.h.
  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) const;

  // Held-out data in file order, in global batches of ranks * rows sequences; the rows that the
  // last one lacks hold no targets, so that every rank runs as many batches. None:
  // num_eval_batches() is 0.
  int64_t num_eval_batches() const;
  absl::StatusOr<Batch> EvalBatch(int64_t index) const;
  // The first `max_batches` of them (0: all).
  absl::StatusOr<std::vector<Batch>> EvalBatches(int64_t max_batches) const;

  int64_t num_sequences() const { return train_->num_sequences(); }  // An epoch
  int64_t tokens_per_epoch() const { return num_sequences() * seq_length_; }
  double EpochAt(int64_t step) const;
  int32_t vocab_size() const { return vocab_size_; }

 private:
  DataLoader() = default;

  DataLoaderOptions options_;
  int64_t seq_length_ = 0;
  int32_t vocab_size_ = 0;
  std::unique_ptr<SequenceSource> train_;
  std::unique_ptr<SequenceSource> eval_;  // Null: no held-out data
};

}  // namespace shoal
