#include "data/sequence_sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/random.h"
#include "core/status.h"

namespace shoal {

ShufflePermutation::ShufflePermutation(uint64_t seed, int64_t epoch, int64_t size)
    : seed_(seed),
      stream_(StreamId(absl::StrCat("data.shuffle.", epoch))),
      size_(static_cast<uint64_t>(size)),
      half_bits_(
          std::max(1, (static_cast<int>(std::bit_width(size_ > 0 ? size_ - 1 : 0)) + 1) / 2)) {}

uint64_t ShufflePermutation::Encrypt(uint64_t value) const {
  constexpr int kRounds = 4;
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  const Philox philox(seed_, stream_);
  uint64_t left = value >> half_bits_, right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t mixed = philox.Bits(right * kRounds + round) & mask;
    const uint64_t next = left ^ mixed;
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

int64_t ShufflePermutation::operator()(int64_t index) const {
  uint64_t value = static_cast<uint64_t>(index);
  do value = Encrypt(value);
  while (value >= size_);
  return static_cast<int64_t>(value);
}

namespace {

// The part [begin, end) of `total` sequences that the options ask for.
struct Part {
  int64_t first, count;
};
Part PartOf(int64_t total, const SequenceOptions& options) {
  const auto border = [total](double share) {
    return std::llround(share * static_cast<double>(total));
  };
  const int64_t first = border(options.begin);
  return {first, border(options.end) - first};
}

class PackedSequences : public SequenceSource {
 public:
  PackedSequences(std::shared_ptr<const TokenDataset> dataset, const SequenceOptions& options)
      : dataset_(std::move(dataset)),
        options_(options),
        part_(PartOf(std::max<int64_t>(0, (dataset_->num_tokens() - 1) / options.seq_length),
                     options)) {}

  int64_t num_sequences() const override { return part_.count; }

  absl::StatusOr<int64_t> Read(int64_t index, const SequenceRow& row) const override {
    const int64_t first = (part_.first + index) * options_.seq_length;
    SHOAL_RETURN_IF_ERROR(dataset_->Read(first, row.tokens));
    SHOAL_RETURN_IF_ERROR(dataset_->Read(first + 1, row.targets));
    return options_.document_mask ? SplitDocuments(first, row) : Number(row);
  }

 private:
  static int64_t Number(const SequenceRow& row) {
    for (size_t t = 0; t < row.positions.size(); ++t) row.positions[t] = static_cast<int64_t>(t);
    return static_cast<int64_t>(row.targets.size());
  }

  // A document that began in an earlier sequence counts its positions from this row's start.
  int64_t SplitDocuments(int64_t first, const SequenceRow& row) const {
    int64_t document = dataset_->DocumentOf(first);
    int64_t end = dataset_->document_start(document + 1);
    int64_t position = 0, number = 0, targets = 0;
    for (int64_t t = 0; t < options_.seq_length; ++t) {
      if (first + t == end) {
        end = dataset_->document_start(++document + 1);
        position = 0;
        ++number;
      }
      row.positions[t] = position++;
      row.documents[t] = static_cast<int32_t>(number);
      if (first + t + 1 == end) {
        row.targets[t] = Batch::kIgnoreIndex;
      } else {
        ++targets;
      }
    }
    return targets;
  }

  std::shared_ptr<const TokenDataset> dataset_;
  SequenceOptions options_;
  Part part_;
};

class DocumentSequences : public SequenceSource {
 public:
  DocumentSequences(std::shared_ptr<const TokenDataset> dataset, const SequenceOptions& options)
      : dataset_(std::move(dataset)), options_(options) {
    first_rows_.reserve(dataset_->num_documents() + 1);
    first_rows_.push_back(0);
    for (int64_t d = 0; d < dataset_->num_documents(); ++d) {
      const int64_t length = dataset_->document_start(d + 1) - dataset_->document_start(d);
      // A last piece of one token has nothing to predict; the piece before has predicted it.
      first_rows_.push_back(first_rows_.back() +
                            (length - 1 + options.seq_length - 1) / options.seq_length);
    }
    part_ = PartOf(first_rows_.back(), options);
  }

  int64_t num_sequences() const override { return part_.count; }

  absl::StatusOr<int64_t> Read(int64_t index, const SequenceRow& row) const override {
    const int64_t number = part_.first + index;
    const int64_t document =
        std::upper_bound(first_rows_.begin(), first_rows_.end(), number) - first_rows_.begin() - 1;
    const int64_t first =
        dataset_->document_start(document) + (number - first_rows_[document]) * options_.seq_length;
    const int64_t left = dataset_->document_start(document + 1) - first;
    const int64_t inputs = std::min(left, options_.seq_length);
    const int64_t targets = std::min(left - 1, options_.seq_length);
    std::fill(row.tokens.begin(), row.tokens.end(), options_.padding_id);
    std::fill(row.targets.begin(), row.targets.end(), Batch::kIgnoreIndex);
    SHOAL_RETURN_IF_ERROR(dataset_->Read(first, row.tokens.first(inputs)));
    SHOAL_RETURN_IF_ERROR(dataset_->Read(first + 1, row.targets.first(targets)));
    for (size_t t = 0; t < row.positions.size(); ++t) row.positions[t] = static_cast<int64_t>(t);
    std::fill(row.documents.begin(), row.documents.end(), 0);
    return targets;
  }

 private:
  std::shared_ptr<const TokenDataset> dataset_;
  SequenceOptions options_;
  std::vector<int64_t> first_rows_;  // (documents + 1)
  Part part_{};
};

}  // namespace

std::unique_ptr<SequenceSource> MakePackedSequences(std::shared_ptr<const TokenDataset> dataset,
                                                    const SequenceOptions& options) {
  return std::make_unique<PackedSequences>(std::move(dataset), options);
}

std::unique_ptr<SequenceSource> MakeDocumentSequences(std::shared_ptr<const TokenDataset> dataset,
                                                      const SequenceOptions& options) {
  return std::make_unique<DocumentSequences>(std::move(dataset), options);
}

}  // namespace shoal
