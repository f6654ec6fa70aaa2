// Examples to learn answers or preferences from, as JSON lines, and as token shards.
//
// A line is one of
//   {"prompt": P, "completion": C}            answers
//   {"messages": [M, ...]}                    answers: every turn of the assistant
//   {"prompt": P, "chosen": C, "rejected": C} preferences
// where M is {"role": "system" | "user" | "assistant", "content": text}, and P and C are texts or
// lists of M. What is trained on is the answer, the eos token after it included (where the
// tokenizer has one), never the prompt.
//
// In a shard a sequence is two documents: its tokens, and as many flags, 1 where a token is to be
// learnt. A preference is two sequences, chosen and rejected.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/recipe.pb.h"
#include "data/token_dataset.h"
#include "data/tokenize_corpus.h"

namespace shoal {

enum class ExampleKind { kAnswers, kPreferences };

// How many sequences an example is.
inline int SequencesOf(ExampleKind kind) { return kind == ExampleKind::kAnswers ? 1 : 2; }

struct ExampleSegment {
  std::string text;
  bool trained = false;
  bool message = false;  // Of a list of messages, not a text of its own
};
using ExampleSequence = std::vector<ExampleSegment>;

// One line of a file. InvalidArgument names the key that is missing or of another type.
absl::StatusOr<std::vector<ExampleSequence>> ParseExample(const std::string& line, ExampleKind kind,
                                                          const ChatSection& chat);

// A Jinja template, as Hugging Face's chat_template.jinja, that makes of messages the text that
// they are here.
std::string ChatTemplateOf(const ChatSection& chat);

struct ExampleCorpus {
  CorpusSize size;
  bool has_messages = false;  // Some example is a list of messages
};

// Encodes the examples of `corpus` (JSON lines), in their order, into a shard at `path`. Errors
// name file and line.
absl::StatusOr<ExampleCorpus> TokenizeExamples(const Tokenizer& tokenizer,
                                               std::span<const CorpusFile> corpus, ExampleKind kind,
                                               const ChatSection& chat, FileSystem& files,
                                               const std::string& path);

// Shards that TokenizeExamples wrote. Thread-safe.
class ExampleDataset {
 public:
  struct Sequence {
    std::vector<int64_t> tokens;
    std::vector<int64_t> trained;  // 1 where the token is to be learnt; as many
  };
  // max_tokens: sequences are cut there, at their end. DataLoss for shards of another kind.
  // Examples that are left without a token to learn are passed over.
  static absl::StatusOr<ExampleDataset> Open(const std::vector<std::string>& paths,
                                             ExampleKind kind, int64_t max_tokens);

  int64_t num_examples() const { return static_cast<int64_t>(examples_.size()); }
  int64_t num_dropped() const { return num_dropped_; }
  int32_t vocab_size() const { return tokens_->vocab_size(); }
  absl::StatusOr<std::vector<Sequence>> Read(int64_t example) const;

 private:
  absl::StatusOr<Sequence> ReadSequence(int64_t sequence) const;

  std::shared_ptr<const TokenDataset> tokens_;
  int sequences_ = 1;  // An example
  int64_t max_tokens_ = 0;
  std::vector<int64_t> examples_;  // First sequence of each
  int64_t num_dropped_ = 0;
};

}  // namespace shoal
