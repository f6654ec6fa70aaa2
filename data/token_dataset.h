// Token ids on disk. A shard is one file:
//
//   64 bytes   TokenShardHeader, little-endian
//   tokens     num_tokens ids of id_bytes (2 or 4) each
//   offsets    at the next multiple of 8: num_documents + 1 uint64: where each document starts, in
//   tokens,
//              and the end
//
// Whoever writes documents ends each with an eos token if it wants one; the shard does not care.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/file_system.h"

namespace shoal {

struct TokenShardHeader {
  char magic[8];  // "SHOALTOK"
  uint32_t version = 1;
  uint32_t id_bytes = 2;  // 2 if vocab_size <= 65536, else 4
  uint64_t num_tokens = 0;
  uint64_t num_documents = 0;
  uint64_t tokenizer_fingerprint = 0;  // Tokenizer::fingerprint(); 0: not known
  uint32_t vocab_size = 0;             // Every id is smaller
  uint32_t tokens_crc = 0;             // CRC-32C of the tokens
  uint32_t offsets_crc = 0;            // and of the offsets
  uint32_t reserved[2] = {0, 0};
  uint32_t header_crc = 0;  // of the 60 bytes before
};
static_assert(sizeof(TokenShardHeader) == 64);

// Writes a shard beside its path and renames it when it is whole. Not thread-safe.
class TokenDatasetWriter {
 public:
  struct Options {
    int32_t vocab_size = 0;
    uint64_t tokenizer_fingerprint = 0;
  };
  // `files` must outlive the writer. A writer destroyed without Finish leaves nothing at `path`.
  static absl::StatusOr<std::unique_ptr<TokenDatasetWriter>> Create(FileSystem& files,
                                                                    const std::string& path,
                                                                    const Options& options);
  ~TokenDatasetWriter();

  // Adds to the open document. InvalidArgument if an id is not in [0, vocab_size).
  absl::Status Append(std::span<const int32_t> ids);
  // Ends the open document; an empty one does not count.
  void EndDocument();
  // Ends the open document, completes the file, syncs it and gives it its name.
  absl::Status Finish();

  int64_t num_tokens() const { return static_cast<int64_t>(header_.num_tokens); }

 private:
  TokenDatasetWriter(FileSystem& files, std::string path);
  absl::Status Flush();

  FileSystem& files_;
  std::string path_;
  std::unique_ptr<WritableFile> file_;
  TokenShardHeader header_;
  std::string buffer_;
  std::vector<uint64_t> offsets_ = {0};
};

// A shard's tokens, memory-mapped, or those of a JSON file {"input_ids": [[...], ...]} (each list
// is one document, as it is), read into memory. Thread-safe.
class TokenShard {
 public:
  // kVerify reads every byte: checksums and ids. kTrust checks the header and the file's size.
  enum class Check { kVerify, kTrust };
  // By the ending: .json, else a shard. Errors: NotFound; DataLoss if the file is not a whole
  // shard; InvalidArgument for wrong JSON.
  static absl::StatusOr<TokenShard> Open(const std::string& path, Check check = Check::kTrust);

  TokenShard(TokenShard&&) noexcept;
  TokenShard& operator=(TokenShard&&) noexcept;
  ~TokenShard();

  const std::string& path() const;
  const TokenShardHeader& header() const { return header_; }
  int64_t num_tokens() const { return static_cast<int64_t>(header_.num_tokens); }
  int64_t num_documents() const { return static_cast<int64_t>(header_.num_documents); }
  // Token at which document `d` starts; d = num_documents(): num_tokens().
  int64_t document_start(int64_t d) const { return static_cast<int64_t>(offsets_[d]); }
  // The document that holds token `index`.
  int64_t DocumentOf(int64_t index) const;

  // Copies tokens [first, first + out.size()) as int64, the type of batches. OutOfRange, or
  // DataLoss if an id is not below vocab_size (the file changed under us).
  absl::Status Read(int64_t first, std::span<int64_t> out) const;

 private:
  struct Mapping;
  TokenShard();
  static absl::StatusOr<TokenShard> OpenBinary(const std::string& path, Check check);
  static absl::StatusOr<TokenShard> OpenJson(const std::string& path);
  absl::Status ReadHeader();
  absl::Status VerifyContent() const;

  std::unique_ptr<Mapping> mapping_;
  TokenShardHeader header_;
  const char* tokens_ = nullptr;
  const uint64_t* offsets_ = nullptr;
};

// Several shards read as one stream of tokens and documents, in their order.
class TokenDataset {
 public:
  static absl::StatusOr<TokenDataset> Open(const std::vector<std::string>& paths,
                                           TokenShard::Check check = TokenShard::Check::kTrust);

  int64_t num_tokens() const { return token_starts_.back(); }
  int64_t num_documents() const { return document_starts_.back(); }
  int64_t document_start(int64_t d) const;
  int64_t DocumentOf(int64_t token) const;
  // Largest of the shards'.
  int32_t vocab_size() const { return vocab_size_; }
  absl::Status Read(int64_t first, std::span<int64_t> out) const;

 private:
  std::vector<TokenShard> shards_;
  std::vector<int64_t> token_starts_ = {0};     // (num shards + 1)
  std::vector<int64_t> document_starts_ = {0};  // (num shards + 1)
  int32_t vocab_size_ = 0;
};

}  // namespace shoal
