// Splits a text into the words that BPE merges never cross: a chain of splits, each of the pieces
// of the one before.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "data/split_pattern.h"

namespace shoal {

// What becomes of a match: a piece of its own; dropped; joined to the piece before or after; joined
// to neighbouring matches.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStage {
  std::shared_ptr<const SplitPattern> pattern;  // Null: no split, prefix_space alone
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;        // What is between the matches counts as the matches
  bool prefix_space = false;  // Before the split, a space before each piece that has none
};

class PreTokenizer {
 public:
  // Room for the words of one call. Words point into the text or in here.
  struct Words {
    std::vector<absl::string_view> words;
    std::deque<std::string> prefixed;  // Pieces that got a space
    std::vector<Span> matches;         // Scratch
  };

  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<SplitStage> stages) : stages_(std::move(stages)) {}

  // Replaces out.words by the words of `text` (valid UTF-8), none of them empty. `continues_text`:
  // the text goes on from an earlier one, so it gets no space in front.
  absl::Status Split(absl::string_view text, bool continues_text, Words& out) const;

 private:
  std::vector<SplitStage> stages_;
};

}  // namespace shoal
