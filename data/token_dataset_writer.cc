#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/crc32c.h"
#include "core/status.h"
#include "data/token_dataset.h"

namespace shoal {
namespace {

constexpr size_t kBufferBytes = size_t{4} << 20;
constexpr char kPartSuffix[] = ".part";

}  // namespace

TokenDatasetWriter::TokenDatasetWriter(FileSystem& files, std::string path)
    : files_(files), path_(std::move(path)) {}

absl::StatusOr<std::unique_ptr<TokenDatasetWriter>> TokenDatasetWriter::Create(
    FileSystem& files, const std::string& path, const Options& options) {
  if (options.vocab_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a token shard needs vocab_size > 0, got ", options.vocab_size));
  }
  std::unique_ptr<TokenDatasetWriter> writer(new TokenDatasetWriter(files, path));
  std::memcpy(writer->header_.magic, "SHOALTOK", 8);
  writer->header_.id_bytes = options.vocab_size <= 65536 ? 2 : 4;
  writer->header_.vocab_size = static_cast<uint32_t>(options.vocab_size);
  writer->header_.tokenizer_fingerprint = options.tokenizer_fingerprint;
  SHOAL_ASSIGN_OR_RETURN(writer->file_,
                         files.OpenForWrite(path + kPartSuffix, OpenMode::kTruncate));
  SHOAL_RETURN_IF_ERROR(writer->file_->Append(std::string(sizeof(TokenShardHeader), '\0')));
  return writer;
}

TokenDatasetWriter::~TokenDatasetWriter() {
  if (file_ == nullptr) return;
  file_.reset();
  files_.Remove(path_ + kPartSuffix).IgnoreError();  // An unfinished shard is of no use
}

absl::Status TokenDatasetWriter::Append(std::span<const int32_t> ids) {
  for (int32_t id : ids) {
    if (id < 0 || static_cast<uint32_t>(id) >= header_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": token ", header_.num_tokens, " is ",
                                                     id, ", expected 0 to ",
                                                     header_.vocab_size - 1));
    }
    buffer_.append(reinterpret_cast<const char*>(&id), header_.id_bytes);  // Little-endian
    ++header_.num_tokens;
  }
  return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
}

void TokenDatasetWriter::EndDocument() {
  if (offsets_.back() == header_.num_tokens) return;
  offsets_.push_back(header_.num_tokens);
  ++header_.num_documents;
}

absl::Status TokenDatasetWriter::Flush() {
  header_.tokens_crc = Crc32c(buffer_, header_.tokens_crc);
  SHOAL_RETURN_IF_ERROR(file_->Append(buffer_));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status TokenDatasetWriter::Finish() {
  EndDocument();
  SHOAL_RETURN_IF_ERROR(Flush());
  const absl::string_view offsets(reinterpret_cast<const char*>(offsets_.data()),
                                  offsets_.size() * sizeof(uint64_t));
  header_.offsets_crc = Crc32c(offsets);
  const size_t padding = (8 - header_.num_tokens * header_.id_bytes % 8) % 8;
  SHOAL_RETURN_IF_ERROR(file_->Append(std::string(padding, '\0')));
  SHOAL_RETURN_IF_ERROR(file_->Append(offsets));
  const absl::string_view header(reinterpret_cast<const char*>(&header_), sizeof(header_));
  header_.header_crc = Crc32c(header.substr(0, sizeof(header_) - sizeof(uint32_t)));
  SHOAL_RETURN_IF_ERROR(file_->WriteAt(0, header));
  SHOAL_RETURN_IF_ERROR(file_->Sync());
  SHOAL_RETURN_IF_ERROR(file_->Close());
  SHOAL_RETURN_IF_ERROR(files_.Rename(path_ + kPartSuffix, path_));
  file_.reset();
  return files_.SyncDirectory(ParentPath(path_));
}

}  // namespace shoal
