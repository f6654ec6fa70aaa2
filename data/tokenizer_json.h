// Reads what a tokenizer.json says into the parts of data/tokenizer.h, and refuses by name what
// they cannot do.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "data/added_tokens.h"
#include "data/bpe_model.h"
#include "data/normalizer.h"
#include "data/pre_tokenizer.h"

namespace shoal {

struct TokenizerDefinition {
  BpeDefinition model;
  Normalizer normalizer;
  std::vector<SplitStage> pre_tokenizer;
  std::vector<AddedToken> added_tokens;  // In the file's order; ids are as written
  std::vector<int32_t> prefix_ids;       // What the post-processor puts before the text
  std::vector<int32_t> suffix_ids;       // and after it
};

// InvalidArgument (broken) or Unimplemented (not supported), with the key's path.
absl::StatusOr<TokenizerDefinition> ParseTokenizerJson(const std::string& json);

// Special tokens that a tokenizer_config.json names.
struct TokenizerConfig {
  std::optional<std::string> eos_token, bos_token, pad_token;
};
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(const std::string& json);

}  // namespace shoal
