#include "data/tokenizer.h"

#include <algorithm>
#include <array>
#include <mutex>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/added_tokens.h"
#include "data/bpe_model.h"
#include "data/byte_level.h"
#include "data/normalizer.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer_json.h"
#include "data/unicode.h"
#include "data/word_cache.h"

namespace shoal {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 30;
// Longer pieces between added tokens are refused: ICU counts bytes in 32 bits.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

// What one call of Encode works in; calls borrow it, so that the cache outlives them.
struct EncodeScratch {
  WordCache cache;
  PreTokenizer::Words words;
  std::vector<AddedTokenMatcher::Segment> raw, normalized;
};

uint64_t Fnv1a(absl::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char c : bytes) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(BpeModel model) : model(std::move(model)) {}

  absl::Status AddTokens(std::vector<AddedToken> added);
  void SetTokenTables();
  void SetRoles(const TokenizerConfig& config);
  std::optional<int32_t> TokenToId(absl::string_view token) const;

  std::unique_ptr<EncodeScratch> BorrowScratch();
  void ReturnScratch(std::unique_ptr<EncodeScratch> scratch);
  absl::Status EncodeSegment(absl::string_view text, bool continues_text, EncodeScratch& scratch,
                             std::vector<int32_t>& ids) const;

  std::string json, config;
  BpeModel model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  absl::flat_hash_map<std::string, AddedToken> added_tokens;
  AddedTokenMatcher raw_matcher;         // Of tokens with normalized = false
  AddedTokenMatcher normalized_matcher;  // and true
  std::vector<int32_t> prefix_ids, suffix_ids;
  std::vector<std::string> token_bytes;  // (vocab_size)
  std::vector<bool> special;             // (vocab_size)
  std::optional<int32_t> eos, bos, pad;
  uint64_t fingerprint = 0;

  std::mutex scratch_mutex;
  std::vector<std::unique_ptr<EncodeScratch>> idle_scratch;  // Guarded by scratch_mutex
};

// Ids as the Rust library gives them: a token of the model keeps its id, others are numbered from
// the vocabulary's size on in the file's order, whatever ids the file states.
absl::Status Tokenizer::Impl::AddTokens(std::vector<AddedToken> added) {
  int32_t next_id = model.num_tokens();
  for (AddedToken& token : added) {
    if (token.content.empty()) continue;
    const std::optional<int32_t> known = TokenToId(token.content);
    token.id = known ? *known : next_id++;
    added_tokens[token.content] = token;
  }
  for (const auto& [content, token] : added_tokens) {
    std::string storage;
    const std::string pattern(token.normalized ? normalizer.Normalize(content, storage)
                                               : absl::string_view(content));
    SHOAL_RETURN_IF_ERROR(
        (token.normalized ? normalized_matcher : raw_matcher).Add(pattern, token));
  }
  return absl::OkStatus();
}

void Tokenizer::Impl::SetTokenTables() {
  int32_t max_id = -1;
  for (const auto& [token, id] : model.vocab()) max_id = std::max(max_id, id);
  for (const auto& [content, token] : added_tokens) max_id = std::max(max_id, token.id);
  token_bytes.resize(max_id + 1);
  special.resize(max_id + 1);
  const auto bytes = [](const std::string& token) { return FromByteLevel(token).value_or(token); };
  for (const auto& [token, id] : model.vocab()) token_bytes[id] = bytes(token);
  for (const auto& [content, token] : added_tokens) {
    std::string storage;
    const absl::string_view form =
        token.normalized ? normalizer.Normalize(content, storage) : content;
    token_bytes[token.id] = bytes(std::string(form));
    special[token.id] = token.special;
  }
}

void Tokenizer::Impl::SetRoles(const TokenizerConfig& config) {
  const auto id = [&](const std::optional<std::string>& token) {
    return token ? TokenToId(*token) : std::nullopt;
  };
  eos = id(config.eos_token);
  bos = id(config.bos_token);
  pad = id(config.pad_token);
  for (const char* usual : {"<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"}) {
    const auto it = added_tokens.find(usual);
    if (!eos && it != added_tokens.end() && it->second.special) eos = it->second.id;
  }
}

std::optional<int32_t> Tokenizer::Impl::TokenToId(absl::string_view token) const {
  const auto it = added_tokens.find(token);
  return it == added_tokens.end() ? model.TokenToId(token) : it->second.id;
}

std::unique_ptr<EncodeScratch> Tokenizer::Impl::BorrowScratch() {
  std::lock_guard<std::mutex> lock(scratch_mutex);
  if (idle_scratch.empty()) return std::make_unique<EncodeScratch>();
  auto scratch = std::move(idle_scratch.back());
  idle_scratch.pop_back();
  return scratch;
}

void Tokenizer::Impl::ReturnScratch(std::unique_ptr<EncodeScratch> scratch) {
  std::lock_guard<std::mutex> lock(scratch_mutex);
  idle_scratch.push_back(std::move(scratch));
}

absl::Status Tokenizer::Impl::EncodeSegment(absl::string_view text, bool continues_text,
                                            EncodeScratch& scratch,
                                            std::vector<int32_t>& ids) const {
  SHOAL_RETURN_IF_ERROR(pre_tokenizer.Split(text, continues_text, scratch.words));
  for (absl::string_view word : scratch.words.words) {
    if (word.size() > WordCache::kMaxWordBytes) {
      SHOAL_RETURN_IF_ERROR(model.EncodeWord(word, ids));
      continue;
    }
    const uint64_t hash = WordCache::Hash(word);
    const std::span<const int32_t> cached = scratch.cache.Find(word, hash);
    if (!cached.empty()) {
      ids.insert(ids.end(), cached.begin(), cached.end());
      continue;
    }
    const size_t first = ids.size();
    SHOAL_RETURN_IF_ERROR(model.EncodeWord(word, ids));
    scratch.cache.Insert(word, hash, std::span(ids).subspan(first));
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& path) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  const std::string json_path = info.is_directory ? JoinPath(path, "tokenizer.json") : path;
  const std::string config_path = JoinPath(ParentPath(json_path), "tokenizer_config.json");
  SHOAL_ASSIGN_OR_RETURN(std::string json, ReadFile(files, json_path, kMaxFileBytes));
  SHOAL_ASSIGN_OR_RETURN(const bool has_config, Exists(files, config_path));
  std::string config;
  if (has_config) {
    SHOAL_ASSIGN_OR_RETURN(config, ReadFile(files, config_path, kMaxFileBytes));
  }
  auto tokenizer = FromJson(std::move(json), std::move(config));
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), json_path);
  return tokenizer;
}

absl::StatusOr<Tokenizer> Tokenizer::FromJson(std::string json, std::string config) {
  SHOAL_ASSIGN_OR_RETURN(TokenizerDefinition definition, ParseTokenizerJson(json));
  SHOAL_ASSIGN_OR_RETURN(BpeModel model, BpeModel::Create(definition.model));
  auto impl = std::make_unique<Impl>(std::move(model));
  impl->normalizer = std::move(definition.normalizer);
  impl->pre_tokenizer = PreTokenizer(std::move(definition.pre_tokenizer));
  SHOAL_RETURN_IF_ERROR(impl->AddTokens(std::move(definition.added_tokens)));
  impl->prefix_ids = std::move(definition.prefix_ids);
  impl->suffix_ids = std::move(definition.suffix_ids);
  impl->SetTokenTables();
  for (const auto* ids : {&impl->prefix_ids, &impl->suffix_ids}) {
    for (int32_t id : *ids) {
      if (id >= static_cast<int32_t>(impl->token_bytes.size())) {
        return absl::InvalidArgumentError(absl::StrCat(
            "post_processor: id ", id, " in a vocabulary of ", impl->token_bytes.size()));
      }
    }
  }
  TokenizerConfig roles;
  if (!config.empty()) {
    auto parsed = ParseTokenizerConfig(config);
    if (!parsed.ok()) return Annotate(parsed.status(), "tokenizer_config.json");
    roles = *std::move(parsed);
  }
  impl->SetRoles(roles);
  impl->fingerprint = Fnv1a(json);
  impl->json = std::move(json);
  impl->config = std::move(config);
  return Tokenizer(std::move(impl));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a text of ", text.size(),
                                                   " bytes: Encode takes up to ", kMaxTextBytes,
                                                   ", pass it in pieces"));
  }
  std::string repaired;
  if (!IsValidUtf8(text)) {
    repaired = ReplaceInvalidUtf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  if (options.add_special_tokens) ids = impl_->prefix_ids;

  auto scratch = impl_->BorrowScratch();
  scratch->raw.clear();
  impl_->raw_matcher.Split(text, scratch->raw);
  bool continues_text = options.continues_text;
  absl::Status status;
  for (const AddedTokenMatcher::Segment& raw : scratch->raw) {
    if (raw.id) {
      ids.push_back(*raw.id);
      continue;
    }
    std::string storage;
    scratch->normalized.clear();
    impl_->normalized_matcher.Split(impl_->normalizer.Normalize(raw.text, storage),
                                    scratch->normalized);
    for (const AddedTokenMatcher::Segment& segment : scratch->normalized) {
      if (segment.id) {
        ids.push_back(*segment.id);
      } else {
        status = impl_->EncodeSegment(segment.text, continues_text && ids.empty(), *scratch, ids);
        if (!status.ok()) break;
      }
    }
    if (!status.ok()) break;
  }
  impl_->ReturnScratch(std::move(scratch));
  SHOAL_RETURN_IF_ERROR(status);
  if (options.add_special_tokens)
    ids.insert(ids.end(), impl_->suffix_ids.begin(), impl_->suffix_ids.end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (options.skip_special_tokens && IsSpecial(id)) continue;
    const absl::string_view token = TokenBytes(id);
    bytes.append(token.data(), token.size());
  }
  return IsValidUtf8(bytes) ? bytes : ReplaceInvalidUtf8(bytes);
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  return id >= 0 && id < vocab_size() ? absl::string_view(impl_->token_bytes[id])
                                      : absl::string_view();
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->token_bytes.size()); }
std::optional<int32_t> Tokenizer::TokenToId(absl::string_view token) const {
  return impl_->TokenToId(token);
}
bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->special[id];
}
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos; }
std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos; }
std::optional<int32_t> Tokenizer::pad_id() const { return impl_->pad; }
uint64_t Tokenizer::fingerprint() const { return impl_->fingerprint; }

absl::Status Tokenizer::SaveFiles(FileSystem& files, const std::string& directory,
                                  int64_t model_max_length) const {
  SHOAL_RETURN_IF_ERROR(CreateDirectories(files, directory));
  SHOAL_RETURN_IF_ERROR(
      WriteFileAtomically(files, JoinPath(directory, "tokenizer.json"), impl_->json));
  nlohmann::ordered_json config;
  if (!impl_->config.empty()) {
    config = nlohmann::ordered_json::parse(impl_->config);
  } else {
    config["tokenizer_class"] = "PreTrainedTokenizerFast";
    config["clean_up_tokenization_spaces"] = false;
    const auto name = [&](const char* key, std::optional<int32_t> id) {
      if (id) config[key] = std::string(TokenBytes(*id));
    };
    name("bos_token", impl_->bos ? impl_->bos : impl_->eos);
    name("eos_token", impl_->eos);
    name("pad_token", impl_->pad);
  }
  if (model_max_length > 0 && !config.contains("model_max_length"))
    config["model_max_length"] = model_max_length;
  return WriteFileAtomically(files, JoinPath(directory, "tokenizer_config.json"),
                             config.dump(2) + "\n");
}

std::string StreamDecoder::Push(int32_t id) {
  if (options_.skip_special_tokens && tokenizer_->IsSpecial(id)) return "";
  const absl::string_view bytes = tokenizer_->TokenBytes(id);
  pending_.append(bytes.data(), bytes.size());
  std::string out;
  size_t done = 0;
  while (done < pending_.size()) {
    const DecodedCharacter c = DecodeUtf8(pending_, done);
    const bool cut_off = !c.valid && done + c.length == pending_.size() &&
                         static_cast<uint8_t>(pending_[done]) >= 0xC2 &&
                         static_cast<uint8_t>(pending_[done]) <= 0xF4;
    if (cut_off) break;  // The next token may bring the rest
    AppendUtf8(c.code_point, out);
    done += c.length;
  }
  pending_.erase(0, done);
  return out;
}

std::string StreamDecoder::Finish() {
  const std::string out = ReplaceInvalidUtf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace shoal
