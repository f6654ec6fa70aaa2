// The split patterns of GPT-2 and of Llama 3, written out: one pass, no backtracking, ASCII by
// table. Each returns the end of the match that begins at text[begin] (begin < text.size(), valid
// UTF-8); there always is one.
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"

namespace shoal {

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t ScanGpt2(absl::string_view text, size_t begin);

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+| \s+(?!\S)|\s+ with at most `max_digits` in place of 3 (Llama
// 3: 3, Qwen 2: 1).
size_t ScanLlama3(absl::string_view text, size_t begin, int max_digits);

}  // namespace shoal
