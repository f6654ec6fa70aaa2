#include "data/tokenize_corpus.h"

#include <algorithm>
#include <future>
#include <vector>

#include "core/status.h"
#include "data/token_dataset.h"

namespace shoal {
namespace {

constexpr size_t kBatchBytes = size_t{2} << 20;  // Text that one thread encodes at a time

using TextBatch = std::vector<DocumentPart>;
using EncodedBatch = std::vector<std::vector<int32_t>>;  // Ids of each part

class CorpusTokenizer {
 public:
  CorpusTokenizer(const Tokenizer& tokenizer, TokenDatasetWriter& writer, int num_threads)
      : tokenizer_(tokenizer),
        writer_(writer),
        num_threads_(static_cast<size_t>(std::max(1, num_threads))) {}

  absl::Status Add(DocumentPart part) {
    if (batches_.empty() || batch_bytes_ >= kBatchBytes) {
      if (batches_.size() >= num_threads_) SHOAL_RETURN_IF_ERROR(Flush());
      batches_.emplace_back();
      batch_bytes_ = 0;
    }
    batch_bytes_ += part.text.size();
    size_.bytes += static_cast<int64_t>(part.text.size());
    size_.documents += part.ends_document;
    batches_.back().push_back(std::move(part));
    return absl::OkStatus();
  }

  // Encodes the batches at once, one a thread, and writes them in their order.
  absl::Status Flush() {
    std::vector<std::future<absl::StatusOr<EncodedBatch>>> encoded;
    const auto policy = batches_.size() > 1 ? std::launch::async : std::launch::deferred;
    for (const TextBatch& batch : batches_) {
      encoded.push_back(std::async(policy, [this, &batch] { return Encode(batch); }));
    }
    absl::Status status;
    for (size_t i = 0; i < batches_.size(); ++i) {
      const absl::StatusOr<EncodedBatch> ids = encoded[i].get();
      if (status.ok()) status = ids.status();
      if (status.ok()) status = Write(batches_[i], *ids);
    }
    batches_.clear();
    return status;
  }

  const CorpusSize& size() const { return size_; }

 private:
  absl::StatusOr<EncodedBatch> Encode(const TextBatch& batch) const {
    EncodedBatch out;
    for (const DocumentPart& part : batch) {
      SHOAL_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                             tokenizer_.Encode(part.text, {.add_special_tokens = false,
                                                           .continues_text = part.continues}));
      if (part.ends_document && tokenizer_.eos_id()) ids.push_back(*tokenizer_.eos_id());
      out.push_back(std::move(ids));
    }
    return out;
  }

  absl::Status Write(const TextBatch& batch, const EncodedBatch& ids) {
    for (size_t i = 0; i < batch.size(); ++i) {
      SHOAL_RETURN_IF_ERROR(writer_.Append(ids[i]));
      if (batch[i].ends_document) writer_.EndDocument();
    }
    return absl::OkStatus();
  }

  const Tokenizer& tokenizer_;
  TokenDatasetWriter& writer_;
  size_t num_threads_;
  std::vector<TextBatch> batches_;
  size_t batch_bytes_ = 0;  // Of the last batch
  CorpusSize size_;
};

}  // namespace

absl::StatusOr<CorpusSize> TokenizeCorpus(const Tokenizer& tokenizer,
                                          std::span<const CorpusFile> corpus, FileSystem& files,
                                          const std::string& path, int num_threads) {
  SHOAL_ASSIGN_OR_RETURN(
      auto writer, TokenDatasetWriter::Create(files, path,
                                              {.vocab_size = tokenizer.vocab_size(),
                                               .tokenizer_fingerprint = tokenizer.fingerprint()}));
  CorpusTokenizer work(tokenizer, *writer, num_threads);
  for (const CorpusFile& entry : corpus) {
    SHOAL_ASSIGN_OR_RETURN(DocumentReader reader, DocumentReader::Open(*entry.source, entry.file));
    for (;;) {
      DocumentPart part;
      SHOAL_ASSIGN_OR_RETURN(const bool found, reader.Next(part));
      if (!found) break;
      SHOAL_RETURN_IF_ERROR(work.Add(std::move(part)));
    }
  }
  SHOAL_RETURN_IF_ERROR(work.Flush());
  SHOAL_RETURN_IF_ERROR(writer->Finish());
  CorpusSize size = work.size();
  size.tokens = writer->num_tokens();
  return size;
}

}  // namespace shoal
