#include "data/word_cache.h"

namespace shoal {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

uint64_t WordCache::Hash(absl::string_view word) {
  uint64_t hash = 0x9E3779B97F4A7C15u ^ word.size();
  const char* data = word.data();
  size_t left = word.size();
  for (; left >= 8; left -= 8, data += 8) {
    uint64_t block;
    std::memcpy(&block, data, 8);
    hash = Mix(hash ^ block, 0xD6E8FEB86659FD93u);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, data, left);
  return Mix(hash ^ tail, 0xA0761D6478BD642Fu);
}

void WordCache::Insert(absl::string_view word, uint64_t hash, std::span<const int32_t> ids) {
  if (2 * (num_words_ + 1) > entries_.size()) Grow();
  size_t slot = hash & mask_;
  while (entries_[slot].num_ids != 0) slot = (slot + 1) & mask_;
  entries_[slot] = {hash, static_cast<uint32_t>(words_.size()), static_cast<uint32_t>(ids_.size()),
                    static_cast<uint16_t>(word.size()), static_cast<uint16_t>(ids.size())};
  words_.append(word.data(), word.size());
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++num_words_;
}

void WordCache::Grow() {
  const bool full = entries_.size() >= kMaxSlots;
  std::vector<Entry> old(full ? entries_.size() : 2 * entries_.size());
  old.swap(entries_);
  mask_ = entries_.size() - 1;
  if (full) {
    num_words_ = 0;
    words_.clear();
    ids_.clear();
    return;
  }
  for (const Entry& entry : old) {
    if (entry.num_ids == 0) continue;
    size_t slot = entry.hash & mask_;
    while (entries_[slot].num_ids != 0) slot = (slot + 1) & mask_;
    entries_[slot] = entry;
  }
}

}  // namespace shoal
