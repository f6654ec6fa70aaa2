#include "data/data_loader.h"

#include <algorithm>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace shoal {
namespace {

absl::StatusOr<std::shared_ptr<const TokenDataset>> OpenDataset(
    const std::vector<std::string>& paths) {
  SHOAL_ASSIGN_OR_RETURN(TokenDataset dataset, TokenDataset::Open(paths));
  return std::make_shared<const TokenDataset>(std::move(dataset));
}

std::unique_ptr<SequenceSource> MakeSource(std::shared_ptr<const TokenDataset> dataset,
                                           const DataSection& data, double begin, double end) {
  const SequenceOptions options{.seq_length = data.seq_length(),
                                .document_mask = data.packing() && data.document_mask(),
                                .begin = begin,
                                .end = end};
  return data.packing() ? MakePackedSequences(std::move(dataset), options)
                        : MakeDocumentSequences(std::move(dataset), options);
}

std::span<int64_t> RowOf(const at::Tensor& tensor_BT, int64_t row) {
  const int64_t length = tensor_BT.size(1);
  return {tensor_BT.mutable_data_ptr<int64_t>() + row * length, static_cast<size_t>(length)};
}

}  // namespace

absl::StatusOr<DataLoader> DataLoader::Create(const DataLoaderOptions& options) {
  SHOAL_CHECK(options.rows > 0 && options.micro_batches > 0 && options.rank >= 0 &&
              options.rank < options.num_ranks)
      << "a loader of " << options.rows << " rows, rank " << options.rank << " of "
      << options.num_ranks;
  const DataSection& data = options.data;
  DataLoader loader;
  loader.options_ = options;
  loader.seq_length_ = data.seq_length();
  SHOAL_ASSIGN_OR_RETURN(const auto train, OpenDataset(options.prepared.train));
  loader.vocab_size_ = std::max(options.prepared.vocab_size, train->vocab_size());
  const bool held_out = options.prepared.eval.empty() && data.holdout() > 0;
  loader.train_ = MakeSource(train, data, 0, held_out ? 1 - data.holdout() : 1);
  if (held_out) loader.eval_ = MakeSource(train, data, 1 - data.holdout(), 1);
  if (!options.prepared.eval.empty()) {
    SHOAL_ASSIGN_OR_RETURN(const auto eval, OpenDataset(options.prepared.eval));
    loader.vocab_size_ = std::max(loader.vocab_size_, eval->vocab_size());
    loader.eval_ = MakeSource(eval, data, 0, 1);
  }
  const auto too_little = [&](absl::string_view which, int64_t tokens) {
    return absl::InvalidArgumentError(absl::StrCat(which, " does not fill one sequence: ", tokens,
                                                   " tokens, data.seq_length ", data.seq_length(),
                                                   ", data.holdout ", data.holdout(),
                                                   ": give more data or shorter sequences"));
  };
  if (loader.num_sequences() < 1) return too_little("data.train", train->num_tokens());
  if (loader.eval_ != nullptr && loader.eval_->num_sequences() < 1) {
    return too_little(held_out ? "data.holdout" : "data.eval",
                      held_out ? train->num_tokens() : options.prepared.eval_tokens);
  }
  return loader;
}

absl::StatusOr<Batch> ReadSequences(const SequenceSource& source, const DataSection& data,
                                    std::span<const int64_t> sequences) {
  const auto rows = static_cast<int64_t>(sequences.size());
  const int64_t seq_length = data.seq_length();
  const bool documents = data.packing() && data.document_mask();
  Batch batch;
  batch.tokens_BT = at::empty({rows, seq_length}, at::kLong);
  batch.targets_BT = at::empty({rows, seq_length}, at::kLong);
  batch.positions_BT = at::empty({rows, seq_length}, at::kLong);
  if (documents) batch.documents_BT = at::zeros({rows, seq_length}, at::kInt);
  for (int64_t b = 0; b < rows; ++b) {
    SequenceRow row{
        RowOf(batch.tokens_BT, b), RowOf(batch.targets_BT, b), RowOf(batch.positions_BT, b), {}};
    if (documents) {
      row.documents = {batch.documents_BT.mutable_data_ptr<int32_t>() + b * seq_length,
                       static_cast<size_t>(seq_length)};
    }
    // A row without targets repeats the first sequence: any tokens will do.
    SHOAL_ASSIGN_OR_RETURN(const int64_t targets,
                           source.Read(std::max<int64_t>(sequences[b], 0), row));
    if (sequences[b] < 0) {
      std::fill(row.targets.begin(), row.targets.end(), Batch::kIgnoreIndex);
    } else {
      batch.num_targets += targets;
    }
  }
  return batch;
}

absl::StatusOr<std::vector<Batch>> DataLoader::MicroBatches(int64_t step) const {
  const DataLoaderOptions& o = options_;
  const int64_t global_rows = int64_t{o.rows} * o.micro_batches * o.num_ranks;
  std::vector<Batch> batches;
  for (int64_t m = 0; m < o.micro_batches; ++m) {
    std::vector<int64_t> sequences;
    for (int64_t b = 0; b < o.rows; ++b) {
      const int64_t position = step * global_rows + (m * o.num_ranks + o.rank) * o.rows + b;
      const int64_t epoch = position / num_sequences(), place = position % num_sequences();
      sequences.push_back(
          o.data.shuffle() ? ShufflePermutation(o.seed, epoch, num_sequences())(place) : place);
    }
    SHOAL_ASSIGN_OR_RETURN(Batch batch, ReadSequences(*train_, o.data, sequences));
    const int64_t first = step * global_rows + (m * o.num_ranks + o.rank) * o.rows;
    batch.sequences_B = at::arange(first, first + o.rows, at::kLong);
    batches.push_back(std::move(batch));
  }
  return batches;
}

int64_t DataLoader::num_eval_batches() const {
  const int64_t global_rows = int64_t{options_.rows} * options_.num_ranks;
  return eval_ == nullptr ? 0 : (eval_->num_sequences() + global_rows - 1) / global_rows;
}

absl::StatusOr<Batch> DataLoader::EvalBatch(int64_t index) const {
  SHOAL_CHECK(index >= 0 && index < num_eval_batches())
      << "evaluation batch " << index << " of " << num_eval_batches();
  std::vector<int64_t> sequences;
  for (int64_t b = 0; b < options_.rows; ++b) {
    const int64_t sequence = (index * options_.num_ranks + options_.rank) * options_.rows + b;
    sequences.push_back(sequence < eval_->num_sequences() ? sequence : -1);
  }
  return ReadSequences(*eval_, options_.data, sequences);
}

absl::StatusOr<std::vector<Batch>> DataLoader::EvalBatches(int64_t max_batches) const {
  const int64_t count =
      max_batches > 0 ? std::min(max_batches, num_eval_batches()) : num_eval_batches();
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    SHOAL_ASSIGN_OR_RETURN(Batch batch, EvalBatch(i));
    batches.push_back(std::move(batch));
  }
  return batches;
}

double DataLoader::EpochAt(int64_t step) const {
  const double global_rows =
      static_cast<double>(options_.rows) * options_.micro_batches * options_.num_ranks;
  return static_cast<double>(step) * global_rows / static_cast<double>(num_sequences());
}

}  // namespace shoal
