// What a pre-tokenizer splits by: a pattern's matches in a text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

struct Span {
  size_t begin, end;  // Bytes [begin, end)
};

// Thread-safe.
class SplitPattern {
 public:
  virtual ~SplitPattern() = default;
  // Appends the matches in `text` (valid UTF-8), left to right, not overlapping. ResourceExhausted
  // if matching takes more steps than a pattern in earnest would.
  virtual absl::Status FindAll(absl::string_view text, std::vector<Span>& matches) const = 0;
  // Whether every text is covered by matches without gaps.
  virtual bool covers_all() const { return false; }
};

// GPT-2's pattern, which ByteLevel splits by.
extern const char kGpt2Pattern[];

// A pattern in Oniguruma's syntax: GPT-2's, Llama 3's and Qwen 2's by scanners written for them,
// others by PCRE2. InvalidArgument naming what is not supported.
absl::StatusOr<std::unique_ptr<SplitPattern>> CompilePattern(absl::string_view oniguruma);
// The text itself; not empty.
std::unique_ptr<SplitPattern> LiteralPattern(std::string literal);
// Each character that is a number.
std::unique_ptr<SplitPattern> NumberPattern();

}  // namespace shoal
