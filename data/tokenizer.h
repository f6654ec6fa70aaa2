// Text to token ids and back, from a Hugging Face `tokenizer.json` of the byte-level BPE family
// (GPT-2, Llama 3, Qwen 2, and what data/bpe_trainer.h writes). Ids equal those of Python's
// `tokenizers` 0.23.
//
//   SHOAL_ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Load("path/to/folder"));
//   SHOAL_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode("Hello world"));
//   tokenizer.Decode(ids);  // "Hello world"
//
// Read from the file: model BPE; normalizer null, NFC, NFD, NFKC, NFKD or a Sequence of them;
// pre-tokenizers ByteLevel, Split, Digits or a Sequence of them that ends in ByteLevel;
// added_tokens; post-processors ByteLevel, TemplateProcessing, RobertaProcessing, BertProcessing,
// Sequence; decoder ByteLevel or null (read as ByteLevel). Anything else is refused by name.
// `truncation` and `padding` do not apply: how long a sequence may be is for whoever asks.
//
// Thread-safe once loaded.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/file_system.h"

namespace shoal {

struct EncodeOptions {
  // What the post-processor adds around the text (a bos token, say).
  bool add_special_tokens = true;
  // The text goes on from an earlier piece: no add_prefix_space.
  bool continues_text = false;
};

struct DecodeOptions {
  bool skip_special_tokens = true;
};

class Tokenizer {
 public:
  // `path`: a tokenizer.json, or a folder that holds one; tokenizer_config.json beside it, if there
  // is one, names the eos, bos and pad tokens. Errors: NotFound; InvalidArgument or Unimplemented
  // naming the file and what in it cannot be read. No bytes can crash it.
  static absl::StatusOr<Tokenizer> Load(const std::string& path);
  // The same from the files' content; `config` (tokenizer_config.json) may be empty.
  static absl::StatusOr<Tokenizer> FromJson(std::string json, std::string config = "");

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Invalid UTF-8 is read as Python's errors="replace" does. ResourceExhausted if a pattern of the
  // file backtracks without end on this text; NotFound if the model has no unk_token where it needs
  // one.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              const EncodeOptions& options = {}) const;

  // UTF-8; bytes that form no character become U+FFFD. Ids that name no token are left out.
  std::string Decode(std::span<const int32_t> ids, const DecodeOptions& options = {}) const;

  // The bytes that one token stands for, whole characters or not; empty if `id` names no token.
  absl::string_view TokenBytes(int32_t id) const;

  // The largest id + 1: the rows that an embedding needs.
  int32_t vocab_size() const;
  std::optional<int32_t> TokenToId(absl::string_view token) const;
  bool IsSpecial(int32_t id) const;

  // From tokenizer_config.json; the eos token, where that names none, from the names in common use
  // ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>") among the special tokens.
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> pad_id() const;

  // A hash of the file's bytes: tokens of two tokenizers with one fingerprint mean the same.
  uint64_t fingerprint() const;

  // Writes tokenizer.json as it was read, and tokenizer_config.json (as it was read, or one with
  // which transformers.AutoTokenizer opens the folder), atomically. `model_max_length` 0: not
  // stated.
  absl::Status SaveFiles(FileSystem& files, const std::string& directory,
                         int64_t model_max_length = 0) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Text from ids that come one at a time (generation): holds bytes back until they form whole
// characters.
class StreamDecoder {
 public:
  // `tokenizer` must outlive this.
  explicit StreamDecoder(const Tokenizer& tokenizer, const DecodeOptions& options = {})
      : tokenizer_(&tokenizer), options_(options) {}

  // What `id` adds to the text: whole characters, perhaps none.
  std::string Push(int32_t id);
  // The bytes still held back, as U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  std::string pending_;
};

}  // namespace shoal
