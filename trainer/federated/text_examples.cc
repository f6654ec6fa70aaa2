#include <algorithm>

#include "absl/strings/str_cat.h"
#include "data/data_loader.h"
#include "data/token_dataset.h"
#include "trainer/federated/example_set.h"

namespace shoal {
namespace {

// Sequences of several sources, one source after the other.
class JoinedSequences final : public SequenceSource {
 public:
  void Add(std::unique_ptr<SequenceSource> source) {
    starts_.push_back(starts_.back() + source->num_sequences());
    sources_.push_back(std::move(source));
  }

  int64_t num_sequences() const override { return starts_.back(); }
  absl::StatusOr<int64_t> Read(int64_t index, const SequenceRow& row) const override {
    const int64_t source = SourceOf(index);
    return sources_[source]->Read(index - starts_[source], row);
  }

  int64_t SourceOf(int64_t index) const {
    return std::upper_bound(starts_.begin(), starts_.end(), index) - starts_.begin() - 1;
  }

 private:
  std::vector<std::unique_ptr<SequenceSource>> sources_;
  std::vector<int64_t> starts_ = {0};
};

class TextExamples final : public ExampleSet {
 public:
  TextExamples(const DataSection& data, std::vector<std::string> names)
      : data_(data), names_(std::move(names)) {}

  absl::Status Add(const std::string& shard, double begin, double end) {
    SHOAL_ASSIGN_OR_RETURN(TokenDataset tokens, TokenDataset::Open({shard}));
    auto dataset = std::make_shared<const TokenDataset>(std::move(tokens));
    const SequenceOptions options{.seq_length = data_.seq_length(),
                                  .document_mask = data_.packing() && data_.document_mask(),
                                  .begin = begin,
                                  .end = end};
    sequences_.Add(data_.packing() ? MakePackedSequences(std::move(dataset), options)
                                   : MakeDocumentSequences(std::move(dataset), options));
    return absl::OkStatus();
  }

  int64_t size() const override { return sequences_.num_sequences(); }

  std::vector<int64_t> Labels() const override {
    std::vector<int64_t> labels(size());
    for (int64_t i = 0; i < size(); ++i) labels[i] = sequences_.SourceOf(i);
    return labels;
  }

  absl::StatusOr<std::vector<std::string>> Owners() const override {
    std::vector<std::string> owners(size());
    for (int64_t i = 0; i < size(); ++i) owners[i] = names_[sequences_.SourceOf(i)];
    return owners;
  }

  absl::StatusOr<Batch> Read(std::span<const int64_t> examples) const override {
    return ReadSequences(sequences_, data_, examples);
  }

 private:
  const DataSection data_;
  const std::vector<std::string> names_;
  JoinedSequences sequences_;
};

}  // namespace

absl::StatusOr<ExampleSets> OpenTextExamples(const TextFiles& text) {
  const bool from_train = text.eval.empty() && text.data.holdout() > 0;
  auto train = std::make_unique<TextExamples>(text.data, text.names);
  auto eval = std::make_unique<TextExamples>(text.data, text.names);
  for (const std::string& shard : text.train) {
    SHOAL_RETURN_IF_ERROR(train->Add(shard, 0, from_train ? 1 - text.data.holdout() : 1));
    if (from_train) SHOAL_RETURN_IF_ERROR(eval->Add(shard, 1 - text.data.holdout(), 1));
  }
  for (const std::string& shard : text.eval) SHOAL_RETURN_IF_ERROR(eval->Add(shard, 0, 1));
  if (train->size() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.train does not fill one sequence of data.seq_length ",
                     text.data.seq_length(), ": give more data or shorter sequences"));
  }
  ExampleSets sets;
  sets.fingerprint = absl::StrCat(train->size(), " sequences of ", text.data.seq_length(),
                                  " tokens from ", text.train.size(), " files");
  sets.train = std::move(train);
  if (eval->size() > 0) sets.eval = std::move(eval);
  return sets;
}

}  // namespace shoal
