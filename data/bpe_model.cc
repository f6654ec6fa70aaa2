#include "data/bpe_model.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/byte_level.h"
#include "data/unicode.h"

namespace shoal {
namespace {

// Up to so many symbols a scan for the lowest rank beats a heap.
constexpr size_t kShortWord = 64;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Create(const BpeDefinition& definition) {
  BpeModel model;
  model.vocab_.reserve(definition.vocab.size());
  for (const auto& [token, id] : definition.vocab) {
    if (id < 0 || id > kMaxId) {
      return absl::InvalidArgumentError(absl::StrCat("model.vocab: token \"", token, "\" has id ",
                                                     id, ", expected 0 to ", kMaxId));
    }
    model.vocab_[token] = id;
  }
  int32_t rank = 0;
  for (const auto& [left, right] : definition.merges) {
    const auto l = model.vocab_.find(left), r = model.vocab_.find(right),
               joined = model.vocab_.find(left + right);
    if (l == model.vocab_.end() || r == model.vocab_.end() || joined == model.vocab_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.merges entry ", rank, ": \"", left, "\" + \"", right,
                       "\": a part or the whole is not in model.vocab"));
    }
    model.merges_[Key(l->second, r->second)] = {rank++, joined->second};
  }
  bool whole_alphabet = true;
  for (int byte = 0; byte < 256; ++byte) {
    std::string character;
    AppendUtf8(ByteLevelAlphabet()[byte], character);
    const auto id = model.TokenToId(character);
    model.byte_ids_[byte] = id.value_or(-1);
    whole_alphabet = whole_alphabet && id.has_value();
  }
  if (definition.byte_fallback && !whole_alphabet) {
    return absl::UnimplementedError(
        "model.byte_fallback is not supported with a vocabulary that lacks some of the 256 byte "
        "characters");
  }
  if (definition.unk_token && !whole_alphabet) {
    const auto unk = model.TokenToId(*definition.unk_token);
    if (!unk)
      return absl::InvalidArgumentError(
          absl::StrCat("model.unk_token \"", *definition.unk_token, "\" is not in model.vocab"));
    model.unk_id_ = *unk;
  }
  model.fuse_unk_ = definition.fuse_unk;
  if (definition.ignore_merges) {
    for (const auto& [token, id] : model.vocab_) {
      if (auto bytes = FromByteLevel(token)) model.whole_words_[*std::move(bytes)] = id;
    }
  }
  return model;
}

std::optional<int32_t> BpeModel::TokenToId(absl::string_view token) const {
  const auto it = vocab_.find(token);
  return it == vocab_.end() ? std::nullopt : std::optional<int32_t>(it->second);
}

absl::Status BpeModel::EncodeWord(absl::string_view word, std::vector<int32_t>& ids) const {
  if (!whole_words_.empty()) {
    if (const auto it = whole_words_.find(word); it != whole_words_.end()) {
      ids.push_back(it->second);
      return absl::OkStatus();
    }
  }
  const size_t first = ids.size();
  SHOAL_RETURN_IF_ERROR(AddSymbols(word, ids));
  if (ids.size() - first <= kShortWord) {
    MergeShort(ids, first);
  } else {
    MergeLong(ids, first);
  }
  return absl::OkStatus();
}

absl::Status BpeModel::AddSymbols(absl::string_view word, std::vector<int32_t>& symbols) const {
  bool after_unk = false;
  for (char c : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id < 0 && unk_id_ < 0) {
      return absl::NotFoundError(absl::StrCat("the tokenizer's vocabulary has no token for byte 0x",
                                              absl::Hex(static_cast<uint8_t>(c), absl::kZeroPad2),
                                              " and no unk_token"));
    }
    if (id >= 0 || !(after_unk && fuse_unk_)) symbols.push_back(id >= 0 ? id : unk_id_);
    after_unk = id < 0;
  }
  return absl::OkStatus();
}

void BpeModel::MergeShort(std::vector<int32_t>& ids, size_t first) const {
  Merge merges[kShortWord];  // Entry i: of symbols i and i + 1
  int32_t* symbols = ids.data() + first;
  size_t n = ids.size() - first;
  const auto lookup = [&](size_t i) {
    const Merge* merge = Find(symbols[i], symbols[i + 1]);
    merges[i] = merge != nullptr ? *merge : Merge{kNoRank, -1};
  };
  for (size_t i = 0; i + 1 < n; ++i) lookup(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    symbols[best] = merges[best].id;
    std::copy(symbols + best + 2, symbols + n, symbols + best + 1);
    if (best + 2 < n) std::copy(merges + best + 2, merges + n - 1, merges + best + 1);
    --n;
    if (best + 1 < n) lookup(best);
    if (best > 0) lookup(best - 1);
  }
  ids.resize(first + n);
}

void BpeModel::MergeLong(std::vector<int32_t>& ids, size_t first) const {
  struct Candidate {
    int32_t rank;
    size_t left;
    int32_t id;
    bool operator>(const Candidate& other) const {
      return std::tie(rank, left) > std::tie(other.rank, other.left);
    }
  };
  constexpr size_t kEnd = static_cast<size_t>(-1);
  const size_t n = ids.size() - first;
  int32_t* symbols = ids.data() + first;  // -1: joined to the one on its left
  std::vector<size_t> previous(n), next(n);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto propose = [&](size_t left) {
    if (left == kEnd || next[left] == kEnd) return;
    const Merge* merge = Find(symbols[left], symbols[next[left]]);
    if (merge != nullptr) queue.push({merge->rank, left, merge->id});
  };
  for (size_t i = 0; i < n; ++i) {
    previous[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == n ? kEnd : i + 1;
  }
  for (size_t i = 0; i + 1 < n; ++i) propose(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const size_t left = top.left;
    if (symbols[left] < 0 || next[left] == kEnd) continue;
    const size_t right = next[left];
    const Merge* merge = Find(symbols[left], symbols[right]);
    if (merge == nullptr || merge->id != top.id)
      continue;  // Stale: one of the two has changed since
    symbols[left] = top.id;
    symbols[right] = -1;
    next[left] = next[right];
    if (next[left] != kEnd) previous[next[left]] = left;
    propose(previous[left]);
    propose(left);
  }
  ids.erase(std::remove(ids.begin() + first, ids.end(), -1), ids.end());
}

}  // namespace shoal
