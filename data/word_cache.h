// Remembers the ids of words: text repeats itself, and a look-up is cheaper than the merges. Of
// bounded size; starts anew when full. Not thread-safe.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

class WordCache {
 public:
  static constexpr size_t kMaxWordBytes = 256;  // Longer words rarely come back

  static uint64_t Hash(absl::string_view word);

  // Null data if the word is not here; a cached word has at least one id.
  std::span<const int32_t> Find(absl::string_view word, uint64_t hash) const {
    for (size_t slot = hash & mask_;; slot = (slot + 1) & mask_) {
      const Entry& entry = entries_[slot];
      if (entry.num_ids == 0) return {};
      if (entry.hash == hash && entry.word_bytes == word.size() &&
          std::memcmp(words_.data() + entry.word, word.data(), word.size()) == 0) {
        return {ids_.data() + entry.ids, entry.num_ids};
      }
    }
  }
  // `word` is not here yet, `ids` is not empty.
  void Insert(absl::string_view word, uint64_t hash, std::span<const int32_t> ids);

 private:
  struct Entry {
    uint64_t hash = 0;
    uint32_t word = 0;  // Offset in words_
    uint32_t ids = 0;   // Offset in ids_
    uint16_t word_bytes = 0;
    uint16_t num_ids = 0;  // 0: a free slot
  };
  static constexpr size_t kFirstSlots = 1 << 12;
  static constexpr size_t kMaxSlots = 1 << 17;

  void Grow();

  std::vector<Entry> entries_ = std::vector<Entry>(kFirstSlots);
  size_t mask_ = kFirstSlots - 1;
  size_t num_words_ = 0;
  std::string words_;
  std::vector<int32_t> ids_;
};

}  // namespace shoal
