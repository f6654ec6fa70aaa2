// Text files to one token shard.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "core/file_system.h"
#include "data/document_reader.h"
#include "data/tokenizer.h"

namespace shoal {

struct CorpusFile {
  const DataSource* source;  // Of field and document_separator; outlives this
  SourceFile file;           // Text or JSON lines
};

struct CorpusSize {
  int64_t bytes = 0;  // Of text
  int64_t tokens = 0;
  int64_t documents = 0;
};

// Encodes all documents of `corpus`, in their order and without special tokens but an eos token
// (where the tokenizer has one) after each, into a shard at `path`. The result does not depend on
// `num_threads`.
absl::StatusOr<CorpusSize> TokenizeCorpus(const Tokenizer& tokenizer,
                                          std::span<const CorpusFile> corpus, FileSystem& files,
                                          const std::string& path, int num_threads);

}  // namespace shoal
