#include "data/bpe_trainer.h"

#include <algorithm>
#include <queue>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/byte_level.h"
#include "data/unicode.h"
#include "data/word_scanner.h"

namespace shoal {

class BpeTrainer::WordCounts {
 public:
  void Add(absl::string_view text) {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = ScanGpt2(text, begin);
      ++counts_[text.substr(begin, end - begin)];
      begin = end;
    }
  }
  const absl::flat_hash_map<std::string, int64_t>& counts() const { return counts_; }

 private:
  absl::flat_hash_map<std::string, int64_t> counts_;  // Bytes of a word -> times seen
};

namespace {

struct Pair {
  int32_t left, right;
  bool operator==(const Pair&) const = default;
  auto operator<=>(const Pair&) const = default;
  template <typename H>
  friend H AbslHashValue(H hash, const Pair& pair) {
    return H::combine(std::move(hash), static_cast<uint64_t>(static_cast<uint32_t>(pair.left))
                                               << 32 |
                                           static_cast<uint32_t>(pair.right));
  }
};

struct Vocabulary {
  std::vector<std::string> tokens;  // By id, in the byte-level alphabet
  absl::flat_hash_map<std::string, int32_t> ids;

  int32_t IdOf(const std::string& token) {
    const auto [it, inserted] = ids.try_emplace(token, static_cast<int32_t>(tokens.size()));
    if (inserted) tokens.push_back(token);
    return it->second;
  }
};

// Joins pairs until the vocabulary is full. Every tie is broken as in Rust's `tokenizers`: highest
// count first, then the smaller pair of ids.
class MergeLoop {
 public:
  MergeLoop(const absl::flat_hash_map<std::string, int64_t>& words, Vocabulary& vocabulary,
            const BpeTrainerOptions& options)
      : vocabulary_(vocabulary), options_(options) {
    AddWords(words);
    for (auto& [pair, positions] : positions_) Push(pair, std::move(positions));
    positions_.clear();
  }

  std::vector<Pair> Run() {
    std::vector<Pair> merges;
    while (static_cast<int64_t>(vocabulary_.tokens.size()) < options_.vocab_size &&
           !queue_.empty()) {
      Candidate top = queue_.top();
      queue_.pop();
      if (const int64_t now = counts_[top.pair];
          now != top.count) {  // Stale: back with what it is worth now
        top.count = now;
        queue_.push(top);
        continue;
      }
      if (top.count < std::max<int64_t>(options_.min_frequency, 1)) break;
      const int32_t joined =
          vocabulary_.IdOf(vocabulary_.tokens[top.pair.left] + vocabulary_.tokens[top.pair.right]);
      merges.push_back(top.pair);
      const std::vector<uint32_t> words = std::move(word_lists_[top.words]);
      for (uint32_t word : words) Join(word, top.pair, joined);
      for (auto& [pair, positions] : positions_) Push(pair, std::move(positions));
      positions_.clear();
    }
    return merges;
  }

 private:
  struct Word {
    size_t begin;  // In symbols_
    uint32_t length;
    int64_t count;
  };
  struct Candidate {
    int64_t count;
    Pair pair;
    size_t words;  // In word_lists_
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : other.pair < pair;
    }
  };

  void AddWords(const absl::flat_hash_map<std::string, int64_t>& words) {
    std::array<int32_t, 256> byte_ids;
    for (int byte = 0; byte < 256; ++byte) {
      std::string character;
      AppendUtf8(ByteLevelAlphabet()[byte], character);
      byte_ids[byte] = vocabulary_.IdOf(character);
    }
    for (const auto& [bytes, count] : words) {
      const auto word = static_cast<uint32_t>(words_.size());
      words_.push_back({symbols_.size(), static_cast<uint32_t>(bytes.size()), count});
      for (char c : bytes) symbols_.push_back(byte_ids[static_cast<uint8_t>(c)]);
      const int32_t* symbols = symbols_.data() + words_[word].begin;
      for (uint32_t i = 0; i + 1 < words_[word].length; ++i)
        Change({symbols[i], symbols[i + 1]}, +1, word);
    }
  }

  // A pair appeared in, or went from, one place of a word.
  void Change(Pair pair, int delta, uint32_t word) {
    counts_[pair] += delta * words_[word].count;
    if (delta < 0) return;
    std::vector<uint32_t>& list = positions_[pair];
    if (list.empty() || list.back() != word) list.push_back(word);
  }

  void Push(Pair pair, std::vector<uint32_t> words) {
    const int64_t count = counts_[pair];
    if (count <= 0) return;
    queue_.push({count, pair, word_lists_.size()});
    word_lists_.push_back(std::move(words));
  }

  // Replaces each `pair` of the word, left to right, and counts what its neighbours become. The
  // pair's own count stays: it is never asked for again.
  void Join(uint32_t index, Pair pair, int32_t joined) {
    Word& word = words_[index];
    int32_t* symbols = symbols_.data() + word.begin;
    uint32_t out = 0;
    for (uint32_t in = 0; in < word.length; ++in, ++out) {
      if (in + 1 == word.length || symbols[in] != pair.left || symbols[in + 1] != pair.right) {
        symbols[out] = symbols[in];
        continue;
      }
      if (out > 0) {
        Change({symbols[out - 1], pair.left}, -1, index);
        Change({symbols[out - 1], joined}, +1, index);
      }
      if (in + 2 < word.length) {
        Change({pair.right, symbols[in + 2]}, -1, index);
        Change({joined, symbols[in + 2]}, +1, index);
      }
      symbols[out] = joined;
      ++in;
    }
    word.length = out;
  }

  Vocabulary& vocabulary_;
  const BpeTrainerOptions& options_;
  std::vector<Word> words_;
  std::vector<int32_t> symbols_;
  absl::flat_hash_map<Pair, int64_t> counts_;
  absl::flat_hash_map<Pair, std::vector<uint32_t>> positions_;  // Words in which a pair is new
  std::vector<std::vector<uint32_t>> word_lists_;               // Of the candidates
  std::priority_queue<Candidate> queue_;
};

absl::Status CheckOptions(const BpeTrainerOptions& options) {
  const int64_t least = 256 + static_cast<int64_t>(options.special_tokens.size());
  if (options.vocab_size < least) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.train.vocab_size ", options.vocab_size, " has no room for 256 bytes and ",
        options.special_tokens.size(), " special tokens: at least ", least));
  }
  for (size_t i = 0; i < options.special_tokens.size(); ++i) {
    const std::string& token = options.special_tokens[i];
    if (token.empty() || !IsValidUtf8(token)) {
      return absl::InvalidArgumentError(
          "tokenizer.train.special_tokens: a token is empty or not UTF-8");
    }
    if (std::count(options.special_tokens.begin(), options.special_tokens.end(), token) > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.train.special_tokens: \"", token, "\" is there twice"));
    }
  }
  return absl::OkStatus();
}

using OrderedJson = nlohmann::ordered_json;

OrderedJson ModelJson(const Vocabulary& vocabulary, const std::vector<Pair>& merges) {
  OrderedJson vocab = OrderedJson::object();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) vocab[vocabulary.tokens[id]] = id;
  // A pair that came twice counts where it came last, as in a table that later entries overwrite.
  absl::flat_hash_map<Pair, size_t> last;
  for (size_t i = 0; i < merges.size(); ++i) last[merges[i]] = i;
  OrderedJson pairs = OrderedJson::array();
  for (size_t i = 0; i < merges.size(); ++i) {
    if (last[merges[i]] != i) continue;
    pairs.push_back({vocabulary.tokens[merges[i].left], vocabulary.tokens[merges[i].right]});
  }
  return OrderedJson{{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", nullptr},
                     {"fuse_unk", false},
                     {"byte_fallback", false},
                     {"ignore_merges", false},
                     {"vocab", std::move(vocab)},
                     {"merges", std::move(pairs)}};
}

OrderedJson TokenizerJson(const Vocabulary& vocabulary, const std::vector<Pair>& merges,
                          size_t num_special) {
  OrderedJson added = OrderedJson::array();
  for (size_t id = 0; id < num_special; ++id) {
    added.push_back(OrderedJson{{"id", id},
                                {"content", vocabulary.tokens[id]},
                                {"single_word", false},
                                {"lstrip", false},
                                {"rstrip", false},
                                {"normalized", false},
                                {"special", true}});
  }
  const OrderedJson byte_level = {{"type", "ByteLevel"},
                                  {"add_prefix_space", false},
                                  {"trim_offsets", true},
                                  {"use_regex", true}};
  return OrderedJson{{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", std::move(added)},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", byte_level},
                     {"post_processor", nullptr},
                     {"decoder", byte_level},
                     {"model", ModelJson(vocabulary, merges)}};
}

OrderedJson ConfigJson(const std::vector<std::string>& special_tokens) {
  OrderedJson config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                        {"clean_up_tokenization_spaces", false}};
  if (!special_tokens.empty()) {
    config["bos_token"] = special_tokens[0];
    config["eos_token"] = special_tokens[0];
  }
  return config;
}

}  // namespace

BpeTrainer::BpeTrainer(BpeTrainerOptions options)
    : options_(std::move(options)), counts_(std::make_unique<WordCounts>()) {}
BpeTrainer::~BpeTrainer() = default;

void BpeTrainer::AddText(absl::string_view text) {
  if (IsValidUtf8(text)) {
    counts_->Add(text);
  } else {
    counts_->Add(ReplaceInvalidUtf8(text));
  }
}

absl::StatusOr<Tokenizer> BpeTrainer::Train() {
  SHOAL_RETURN_IF_ERROR(CheckOptions(options_));
  Vocabulary vocabulary;
  for (const std::string& token : options_.special_tokens) vocabulary.IdOf(token);
  std::vector<char32_t> alphabet(ByteLevelAlphabet().begin(), ByteLevelAlphabet().end());
  std::sort(alphabet.begin(), alphabet.end());
  for (char32_t c : alphabet) {
    std::string character;
    AppendUtf8(c, character);
    vocabulary.IdOf(character);
  }
  const std::vector<Pair> merges = MergeLoop(counts_->counts(), vocabulary, options_).Run();
  const OrderedJson json = TokenizerJson(vocabulary, merges, options_.special_tokens.size());
  return Tokenizer::FromJson(json.dump(2), ConfigJson(options_.special_tokens).dump(2));
}

}  // namespace shoal
