#include "data/example_loader.h"

#include <algorithm>
#include <cmath>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/sequence_sampler.h"

namespace shoal {

absl::StatusOr<ExampleLoader> ExampleLoader::Create(const ExampleLoaderOptions& options) {
  SHOAL_CHECK(options.examples > 0 && options.micro_batches > 0 && options.rank >= 0 &&
              options.rank < options.num_ranks);
  ExampleLoader loader;
  loader.options_ = options;
  // A token that is only predicted is no input.
  const int64_t max_tokens = options.seq_length + (options.whole ? 0 : 1);
  const auto open = [&](const std::vector<std::string>& paths) {
    return ExampleDataset::Open(paths, options.kind, max_tokens);
  };
  SHOAL_ASSIGN_OR_RETURN(ExampleDataset train, open(options.train));
  loader.num_train_ = train.num_examples();
  loader.train_ = std::make_shared<const ExampleDataset>(std::move(train));
  if (!options.eval.empty()) {
    SHOAL_ASSIGN_OR_RETURN(ExampleDataset eval, open(options.eval));
    loader.eval_ = std::make_shared<const ExampleDataset>(std::move(eval));
  } else {
    loader.num_train_ -= std::llround(options.holdout * static_cast<double>(loader.num_train_));
  }
  if (loader.num_train_ < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data.train holds no example to learn from (", loader.num_dropped(),
        " have no answer within data.seq_length ", options.seq_length, "): give longer sequences"));
  }
  return loader;
}

int64_t ExampleLoader::num_held_out() const {
  return eval_ ? eval_->num_examples() : train_->num_examples() - num_train_;
}

absl::StatusOr<std::vector<ExampleDataset::Sequence>> ExampleLoader::Read(int64_t example) const {
  const bool held_out = eval_ && example >= num_train_;
  return held_out ? eval_->Read(example - num_train_) : train_->Read(example);
}

Batch ExampleLoader::Lay(const std::vector<ExampleDataset::Sequence>& rows) const {
  int64_t longest = 1;
  for (const auto& row : rows) {
    longest = std::max(longest, static_cast<int64_t>(row.tokens.size()) - (options_.whole ? 0 : 1));
  }
  const int64_t multiple = options_.length_multiple, B = static_cast<int64_t>(rows.size());
  const int64_t T = std::min((longest + multiple - 1) / multiple * multiple, options_.seq_length);
  Batch batch;
  batch.tokens_BT = at::zeros({B, T}, at::kLong);
  batch.targets_BT = at::full({B, T}, Batch::kIgnoreIndex, at::kLong);
  batch.positions_BT = at::arange(T, at::kLong).repeat({B, 1});
  batch.lengths_B = at::empty({B}, at::kLong);
  for (int64_t b = 0; b < B; ++b) {
    const auto& [tokens, trained] = rows[b];
    const int64_t n = std::min(static_cast<int64_t>(tokens.size()), T + (options_.whole ? 0 : 1));
    const int64_t length = options_.whole ? n : n - 1;
    int64_t* targets = batch.targets_BT.mutable_data_ptr<int64_t>() + b * T;
    std::copy_n(tokens.begin(), length, batch.tokens_BT.mutable_data_ptr<int64_t>() + b * T);
    batch.lengths_B.mutable_data_ptr<int64_t>()[b] = length;
    for (int64_t t = 0; !options_.whole && t + 1 < n; ++t) {
      if (!trained[t + 1]) continue;
      targets[t] = tokens[t + 1];
      ++batch.num_targets;
    }
  }
  if (options_.whole) batch.named["last_B"] = at::sub(batch.lengths_B, 1);
  return batch;
}

absl::StatusOr<Batch> ExampleLoader::MakeBatch(const std::vector<int64_t>& examples) const {
  std::vector<ExampleDataset::Sequence> rows;
  at::Tensor weight_E = at::ones({static_cast<int64_t>(examples.size())}, at::kFloat);
  for (size_t e = 0; e < examples.size(); ++e) {
    SHOAL_ASSIGN_OR_RETURN(auto sequences, Read(std::max<int64_t>(examples[e], 0)));
    if (examples[e] < 0) weight_E.mutable_data_ptr<float>()[e] = 0;
    for (auto& sequence : sequences) {
      // What only fills a batch has nothing to learn.
      if (examples[e] < 0) std::fill(sequence.trained.begin(), sequence.trained.end(), 0);
      rows.push_back(std::move(sequence));
    }
  }
  Batch batch = Lay(rows);
  batch.named["example_E"] = at::tensor(examples, at::kLong);
  batch.named["weight_E"] = weight_E;
  return batch;
}

int64_t ExampleLoader::Position(int64_t step, int64_t micro_batch) const {
  const ExampleLoaderOptions& o = options_;
  return ((step * o.micro_batches + micro_batch) * o.num_ranks + o.rank) * o.examples;
}

int64_t ExampleLoader::ExampleAt(int64_t position) const {
  const int64_t epoch = position / num_train_, place = position % num_train_;
  return options_.shuffle ? ShufflePermutation(options_.seed, epoch, num_train_)(place) : place;
}

absl::StatusOr<std::vector<Batch>> ExampleLoader::MicroBatches(int64_t step) const {
  std::vector<Batch> batches;
  for (int64_t m = 0; m < options_.micro_batches; ++m) {
    const int64_t first = Position(step, m);
    std::vector<int64_t> examples;
    for (int64_t e = 0; e < options_.examples; ++e) examples.push_back(ExampleAt(first + e));
    SHOAL_ASSIGN_OR_RETURN(Batch batch, MakeBatch(examples));
    const int64_t rows = SequencesOf(options_.kind);
    batch.sequences_B = at::arange(first * rows, (first + options_.examples) * rows, at::kLong);
    batches.push_back(std::move(batch));
  }
  return batches;
}

absl::StatusOr<std::vector<Batch>> ExampleLoader::MismatchedBatches(int64_t step) const {
  const int64_t global = int64_t{options_.examples} * options_.micro_batches * options_.num_ranks;
  const auto answer_of = [](const ExampleDataset::Sequence& sequence) {
    return std::find(sequence.trained.begin(), sequence.trained.end(), 1) -
           sequence.trained.begin();
  };
  std::vector<Batch> batches;
  for (int64_t m = 0; m < options_.micro_batches; ++m) {
    std::vector<ExampleDataset::Sequence> rows;
    for (int64_t e = 0; e < options_.examples; ++e) {
      const int64_t position = Position(step, m) + e;
      const int64_t next = step * global + (position + 1 - step * global) % global;
      SHOAL_ASSIGN_OR_RETURN(auto own, Read(ExampleAt(position)));
      SHOAL_ASSIGN_OR_RETURN(const auto other, Read(ExampleAt(next)));
      ExampleDataset::Sequence& row = own[0];
      row.tokens.resize(answer_of(row));
      row.trained.resize(row.tokens.size());
      const int64_t from = answer_of(other[0]);
      row.tokens.insert(row.tokens.end(), other[0].tokens.begin() + from, other[0].tokens.end());
      row.trained.insert(row.trained.end(), other[0].trained.begin() + from,
                         other[0].trained.end());
      rows.push_back(std::move(row));
    }
    batches.push_back(Lay(rows));
  }
  return batches;
}

absl::StatusOr<std::vector<Batch>> ExampleLoader::EvalBatches(int64_t max_batches) const {
  const int64_t global = int64_t{options_.examples} * options_.num_ranks;
  int64_t count = (num_held_out() + global - 1) / global;
  if (max_batches > 0) count = std::min(count, max_batches);
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int64_t> examples;
    for (int64_t e = 0; e < options_.examples; ++e) {
      const int64_t place = (i * options_.num_ranks + options_.rank) * options_.examples + e;
      examples.push_back(place < num_held_out() ? num_train_ + place : -1);
    }
    SHOAL_ASSIGN_OR_RETURN(Batch batch, MakeBatch(examples));
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace shoal
