// Byte pair encoding of single words (Sennrich et al. 2016): start from bytes, then join the
// neighbours whose pair comes first in the list of merges, leftmost first, until no pair is in it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// As tokenizer.json's "model" has it; tokens are written in the byte-level alphabet
// (data/byte_level.h).
struct BpeDefinition {
  std::vector<std::pair<std::string, int32_t>> vocab;       // Token, id
  std::vector<std::pair<std::string, std::string>> merges;  // By rank
  std::optional<std::string> unk_token;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;  // A word that is a token is that token, whatever the merges say
};

class BpeModel {
 public:
  // Largest id accepted: beyond it a file is broken, not large.
  static constexpr int32_t kMaxId = (1 << 24) - 1;

  // InvalidArgument if a merge or unk_token is not in the vocabulary.
  static absl::StatusOr<BpeModel> Create(const BpeDefinition& definition);

  // Appends the ids of one word's bytes. NotFound if the vocabulary lacks a byte and there is no
  // unk_token.
  absl::Status EncodeWord(absl::string_view word, std::vector<int32_t>& ids) const;

  std::optional<int32_t> TokenToId(absl::string_view token) const;
  int32_t num_tokens() const { return static_cast<int32_t>(vocab_.size()); }
  const absl::flat_hash_map<std::string, int32_t>& vocab() const { return vocab_; }

 private:
  struct Merge {
    int32_t rank;
    int32_t id;
  };
  BpeModel() = default;
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  const Merge* Find(int32_t left, int32_t right) const {
    const auto it = merges_.find(Key(left, right));
    return it == merges_.end() ? nullptr : &it->second;
  }
  absl::Status AddSymbols(absl::string_view word, std::vector<int32_t>& symbols) const;
  void MergeShort(std::vector<int32_t>& ids, size_t first) const;
  void MergeLong(std::vector<int32_t>& ids, size_t first) const;

  absl::flat_hash_map<std::string, int32_t> vocab_;
  absl::flat_hash_map<std::string, int32_t> whole_words_;  // Bytes -> id, of ignore_merges
  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::array<int32_t, 256> byte_ids_{};  // -1: not in the vocabulary
  int32_t unk_id_ = -1;                  // -1: none
  bool fuse_unk_ = false;
};

}  // namespace shoal
