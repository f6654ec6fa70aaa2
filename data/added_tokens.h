// Tokens that are found in the text before anything else happens to it (tokenizer.json's
// added_tokens).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace shoal {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // Not found inside a word
  bool lstrip = false;       // Takes the spaces on its left
  bool rstrip = false;       // and on its right
  bool normalized = true;    // Looked for, in its normal form, in the normalized text
  bool special = false;      // Left out by Decode
};

// Finds tokens in a text: of those that start leftmost the longest, then on from its end.
class AddedTokenMatcher {
 public:
  struct Segment {
    absl::string_view text;
    std::optional<int32_t> id;  // Of an added token; else plain text
  };

  // `pattern` is what is looked for: token.content or its normal form. InvalidArgument if it is
  // empty or another token's.
  absl::Status Add(const std::string& pattern, const AddedToken& token);

  bool empty() const { return tokens_.empty(); }
  // Appends the segments of `text` to `out`, none empty but for tokens'.
  void Split(absl::string_view text, std::vector<Segment>& out) const;

 private:
  struct Match {
    size_t length = 0;
    const AddedToken* token = nullptr;
  };
  Match LongestAt(absl::string_view text, size_t position) const;

  // A trie: (node << 8 | byte) -> node.
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> node_tokens_ = {
      -1};                          // Index in tokens_ of the pattern that ends at the node, or -1
  std::array<bool, 256> starts_{};  // Bytes that a pattern starts with
  std::vector<AddedToken> tokens_;
};

}  // namespace shoal
