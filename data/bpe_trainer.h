// Trains a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): the same vocabulary and
// merges as Python's `tokenizers` BpeTrainer with initial_alphabet ByteLevel.alphabet() gives for
// the same texts.
//
//   BpeTrainer trainer({.vocab_size = 8192, .special_tokens = {"<|endoftext|>"}});
//   trainer.AddText(document);  // any number of times
//   SHOAL_ASSIGN_OR_RETURN(Tokenizer tokenizer, trainer.Train());
//
// Cost: the distinct words are kept (memory grows with them, not with the text). A merge touches
// only the words that hold its pair; the next pair comes from a heap whose stale counts are
// refreshed when popped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "data/tokenizer.h"

namespace shoal {

struct BpeTrainerOptions {
  int32_t vocab_size =
      8192;  // Special tokens and the 256 bytes included. Fewer if the text gives no more
  int64_t min_frequency = 2;                // A pair must be seen this often to be merged
  std::vector<std::string> special_tokens;  // Ids 0, 1, ...; the first ends documents (eos)
};

class BpeTrainer {
 public:
  explicit BpeTrainer(BpeTrainerOptions options);
  ~BpeTrainer();

  // Counts the words of one text, split as GPT-2's pattern does; no word crosses two texts. Invalid
  // UTF-8 is read as U+FFFD.
  void AddText(absl::string_view text);

  // InvalidArgument if vocab_size has no room for the special tokens and the alphabet, or a special
  // token is empty or given twice. Call once.
  absl::StatusOr<Tokenizer> Train();

 private:
  class WordCounts;
  BpeTrainerOptions options_;
  std::unique_ptr<WordCounts> counts_;
};

}  // namespace shoal
