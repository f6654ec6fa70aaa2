#include "data/token_dataset.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/crc32c.h"
#include "core/status.h"

namespace shoal {
namespace {

constexpr int64_t kMaxJsonBytes = int64_t{1} << 30;

}  // namespace

// The bytes behind a shard: a read-only map of its file, or what a JSON file was turned into.
struct TokenShard::Mapping {
  explicit Mapping(std::string path) : path(std::move(path)) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data != nullptr) munmap(const_cast<char*>(data), size);
  }

  absl::Status Open() {
    const auto error = [&](const char* what) {
      const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(errno));
      return errno == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
    };
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error("open");
    struct stat info {};
    absl::Status status;
    if (fstat(fd, &info) != 0) {
      status = error("stat");
    } else if (!S_ISREG(info.st_mode) ||
               info.st_size < static_cast<off_t>(sizeof(TokenShardHeader))) {
      status =
          absl::DataLossError(absl::StrCat(path, ": not a token shard (", info.st_size, " bytes)"));
    } else {
      size = static_cast<size_t>(info.st_size);
      void* map = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
      if (map == MAP_FAILED) {
        status = error("mmap");
      } else {
        data = static_cast<const char*>(map);
      }
    }
    close(fd);
    return status;
  }

  std::string path;
  const char* data = nullptr;
  size_t size = 0;
  std::vector<int32_t> ids;       // Of JSON
  std::vector<uint64_t> offsets;  // Of JSON
};

TokenShard::TokenShard() = default;
TokenShard::TokenShard(TokenShard&&) noexcept = default;
TokenShard& TokenShard::operator=(TokenShard&&) noexcept = default;
TokenShard::~TokenShard() = default;

const std::string& TokenShard::path() const { return mapping_->path; }

absl::StatusOr<TokenShard> TokenShard::Open(const std::string& path, Check check) {
  return absl::EndsWith(path, ".json") ? OpenJson(path) : OpenBinary(path, check);
}

absl::StatusOr<TokenShard> TokenShard::OpenBinary(const std::string& path, Check check) {
  TokenShard shard;
  shard.mapping_ = std::make_unique<Mapping>(path);
  SHOAL_RETURN_IF_ERROR(shard.mapping_->Open());
  SHOAL_RETURN_IF_ERROR(shard.ReadHeader());
  if (check == Check::kVerify) SHOAL_RETURN_IF_ERROR(shard.VerifyContent());
  return shard;
}

absl::Status TokenShard::ReadHeader() {
  const auto broken = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(path(), ": broken token shard: ", what));
  };
  std::memcpy(&header_, mapping_->data, sizeof(header_));
  if (std::memcmp(header_.magic, "SHOALTOK", 8) != 0) {
    return absl::DataLossError(
        absl::StrCat(path(), ": not a token shard: it does not begin with SHOALTOK"));
  }
  if (Crc32c({mapping_->data, sizeof(header_) - sizeof(uint32_t)}) != header_.header_crc) {
    return broken("the header's checksum does not match");
  }
  if (header_.version != 1)
    return broken(absl::StrCat("version ", header_.version, ", expected 1"));
  if (header_.id_bytes != 2 && header_.id_bytes != 4)
    return broken(absl::StrCat("ids of ", header_.id_bytes, " bytes"));
  // Before any multiplication: neither count can exceed the file's bytes.
  if (header_.num_tokens > mapping_->size || header_.num_documents > mapping_->size)
    return broken("truncated");
  const uint64_t tokens_end = sizeof(header_) + header_.num_tokens * header_.id_bytes;
  const uint64_t offsets_begin = (tokens_end + 7) / 8 * 8;
  const uint64_t expected = offsets_begin + (header_.num_documents + 1) * sizeof(uint64_t);
  if (expected != mapping_->size) {
    return broken(
        absl::StrCat("the file has ", mapping_->size, " bytes, its header says ", expected));
  }
  tokens_ = mapping_->data + sizeof(header_);
  offsets_ = reinterpret_cast<const uint64_t*>(mapping_->data + offsets_begin);
  if (Crc32c({reinterpret_cast<const char*>(offsets_),
              (header_.num_documents + 1) * sizeof(uint64_t)}) != header_.offsets_crc) {
    return broken("the checksum of its document offsets does not match");
  }
  if (offsets_[0] != 0 || offsets_[header_.num_documents] != header_.num_tokens ||
      !std::is_sorted(offsets_, offsets_ + header_.num_documents + 1)) {
    return broken("its document offsets do not ascend from 0 to the number of tokens");
  }
  return absl::OkStatus();
}

absl::Status TokenShard::VerifyContent() const {
  if (Crc32c({tokens_, header_.num_tokens * header_.id_bytes}) != header_.tokens_crc) {
    return absl::DataLossError(
        absl::StrCat(path(), ": broken token shard: the tokens' checksum does not match"));
  }
  std::vector<int64_t> block(65536);
  for (int64_t first = 0; first < num_tokens(); first += static_cast<int64_t>(block.size())) {
    const int64_t count =
        std::min<int64_t>(static_cast<int64_t>(block.size()), num_tokens() - first);
    SHOAL_RETURN_IF_ERROR(Read(first, std::span(block).first(count)));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenShard> TokenShard::OpenJson(const std::string& path) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path, kMaxJsonBytes));
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return wrong("not JSON");
  const auto lists = json.is_object() ? json.find("input_ids") : json.end();
  if (!json.is_object() || lists == json.end() || !lists->is_array()) {
    return wrong("expected {\"input_ids\": [[ids of a document], ...]}");
  }
  TokenShard shard;
  shard.mapping_ = std::make_unique<Mapping>(path);
  Mapping& mapping = *shard.mapping_;
  mapping.offsets.push_back(0);
  int32_t max_id = 0;
  for (const nlohmann::json& list : *lists) {
    const auto document = mapping.offsets.size() - 1;
    if (!list.is_array())
      return wrong(absl::StrCat("input_ids entry ", document, ": expected a list of ids"));
    for (const nlohmann::json& id : list) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= std::numeric_limits<int32_t>::max()) {
        return wrong(
            absl::StrCat("input_ids entry ", document, ": ", id.dump(), " is not a token id"));
      }
      mapping.ids.push_back(id.get<int32_t>());
      max_id = std::max(max_id, mapping.ids.back());
    }
    if (mapping.ids.size() > mapping.offsets.back()) mapping.offsets.push_back(mapping.ids.size());
  }
  shard.header_.id_bytes = 4;
  shard.header_.vocab_size = static_cast<uint32_t>(max_id) + 1;
  shard.header_.num_tokens = mapping.ids.size();
  shard.header_.num_documents = mapping.offsets.size() - 1;
  shard.tokens_ = reinterpret_cast<const char*>(mapping.ids.data());
  shard.offsets_ = mapping.offsets.data();
  return shard;
}

int64_t TokenShard::DocumentOf(int64_t index) const {
  return std::upper_bound(offsets_, offsets_ + num_documents() + 1, static_cast<uint64_t>(index)) -
         offsets_ - 1;
}

absl::Status TokenShard::Read(int64_t first, std::span<int64_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (first < 0 || count > num_tokens() - first) {
    return absl::OutOfRangeError(
        absl::StrCat(path(), ": tokens ", first, " to ", first + count, " of ", num_tokens()));
  }
  uint64_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t id = 0;
    std::memcpy(&id, tokens_ + (first + i) * header_.id_bytes, header_.id_bytes);
    out[i] = id;
    largest = std::max<uint64_t>(largest, id);
  }
  if (count > 0 && largest >= header_.vocab_size) {
    return absl::DataLossError(
        absl::StrCat(path(), ": token id ", largest, " in a vocabulary of ", header_.vocab_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenDataset> TokenDataset::Open(const std::vector<std::string>& paths,
                                                TokenShard::Check check) {
  TokenDataset dataset;
  for (const std::string& path : paths) {
    SHOAL_ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(path, check));
    dataset.token_starts_.push_back(dataset.num_tokens() + shard.num_tokens());
    dataset.document_starts_.push_back(dataset.num_documents() + shard.num_documents());
    dataset.vocab_size_ =
        std::max(dataset.vocab_size_, static_cast<int32_t>(shard.header().vocab_size));
    dataset.shards_.push_back(std::move(shard));
  }
  return dataset;
}

namespace {

// The entry of ascending `starts` (first 0, last the end) whose range holds `value`; the last for
// the end.
size_t RangeOf(const std::vector<int64_t>& starts, int64_t value) {
  const auto it = std::upper_bound(starts.begin(), starts.end(), value);
  return std::min<size_t>(it - starts.begin(), starts.size() - 1) - 1;
}

}  // namespace

int64_t TokenDataset::document_start(int64_t d) const {
  if (d >= num_documents()) return num_tokens();
  const size_t shard = RangeOf(document_starts_, d);
  return token_starts_[shard] + shards_[shard].document_start(d - document_starts_[shard]);
}

int64_t TokenDataset::DocumentOf(int64_t token) const {
  const size_t shard = RangeOf(token_starts_, token);
  return document_starts_[shard] + shards_[shard].DocumentOf(token - token_starts_[shard]);
}

absl::Status TokenDataset::Read(int64_t first, std::span<int64_t> out) const {
  while (!out.empty()) {
    if (first < 0 || first >= num_tokens()) {
      return absl::OutOfRangeError(absl::StrCat("token ", first, " of ", num_tokens()));
    }
    const size_t shard = RangeOf(token_starts_, first);
    const int64_t count =
        std::min<int64_t>(static_cast<int64_t>(out.size()), token_starts_[shard + 1] - first);
    SHOAL_RETURN_IF_ERROR(shards_[shard].Read(first - token_starts_[shard], out.first(count)));
    out = out.subspan(count);
    first += count;
  }
  return absl::OkStatus();
}

}  // namespace shoal
