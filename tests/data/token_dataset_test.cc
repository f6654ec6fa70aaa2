#include "data/token_dataset.h"

#include <gmock/gmock.h>

#include "core/status.h"
#include "tests/data/test_files.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::Status WriteShard(const std::string& path, int32_t vocab_size,
                        const std::vector<std::vector<int32_t>>& documents) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(auto writer,
                         TokenDatasetWriter::Create(
                             files, path, {.vocab_size = vocab_size, .tokenizer_fingerprint = 7}));
  for (const auto& document : documents) {
    SHOAL_RETURN_IF_ERROR(writer->Append(document));
    writer->EndDocument();
  }
  return writer->Finish();
}

TEST(TokenShardTest, RoundTripsBothWidths) {
  const TestFolder folder;
  for (int32_t vocab_size : {65536, 65537}) {
    const std::string path = folder.Path("a.bin");
    ASSERT_TRUE(WriteShard(path, vocab_size, {{1, 2, 65535}, {}, {4}}).ok());
    const auto shard = TokenShard::Open(path, TokenShard::Check::kVerify);
    ASSERT_TRUE(shard.ok()) << shard.status();
    EXPECT_EQ(shard->header().id_bytes, vocab_size == 65536 ? 2u : 4u);
    EXPECT_EQ(shard->header().tokenizer_fingerprint, 7u);
    EXPECT_EQ(shard->num_documents(), 2);
    std::vector<int64_t> ids(4);
    ASSERT_TRUE(shard->Read(0, std::span(ids)).ok());
    EXPECT_THAT(ids, ElementsAre(1, 2, 65535, 4));
    EXPECT_EQ(shard->DocumentOf(2), 0);
    EXPECT_EQ(shard->DocumentOf(3), 1);
    EXPECT_EQ(shard->Read(1, std::span(ids)).code(), absl::StatusCode::kOutOfRange);
  }
}

TEST(TokenShardTest, RefusesIdsOutsideTheVocabulary) {
  const TestFolder folder;
  EXPECT_THAT(std::string(WriteShard(folder.Path("a.bin"), 10, {{1, 10}}).message()),
              HasSubstr("token 1 is 10, expected 0 to 9"));
  EXPECT_FALSE(WriteShard(folder.Path("a.bin"), 10, {{-1}}).ok());
  EXPECT_EQ(TokenShard::Open(folder.Path("a.bin")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // Nothing half-written stays
}

TEST(TokenShardTest, EveryFlippedByteAndEveryTruncationIsFound) {
  const TestFolder folder;
  const std::string path = folder.Path("a.bin");
  ASSERT_TRUE(WriteShard(path, 300, {{1, 2, 3}, {4, 5}}).ok());
  const std::string good = ReadText(path);
  const size_t tokens_end = sizeof(TokenShardHeader) + 5 * 2;
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x41);
    folder.Write("a.bin", bad);
    const bool padding = i >= tokens_end && i < (tokens_end + 7) / 8 * 8;
    EXPECT_EQ(TokenShard::Open(path, TokenShard::Check::kVerify).ok(), padding) << "byte " << i;
    folder.Write("a.bin", good.substr(0, i));
    EXPECT_EQ(TokenShard::Open(path).status().code(), absl::StatusCode::kDataLoss)
        << "cut at " << i;
  }
  folder.Write("a.bin", good + "x");
  EXPECT_EQ(TokenShard::Open(path).status().code(), absl::StatusCode::kDataLoss);
}

TEST(TokenShardTest, ReadsListsOfIds) {
  const TestFolder folder;
  const auto open = [&](const std::string& json) {
    return TokenShard::Open(folder.Write("a.json", json));
  };
  const auto shard = open(R"({"input_ids": [[1, 2], [3]]})");
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ(shard->num_tokens(), 3);
  EXPECT_EQ(shard->num_documents(), 2);
  EXPECT_EQ(shard->header().vocab_size, 4u);
  for (const char* bad : {"", "[", "[]", "{}", R"({"input_ids": 3})", R"({"input_ids": [3]})",
                          R"({"input_ids": [[-1]]})", R"({"input_ids": [["a"]]})",
                          R"({"input_ids": [[1.5]]})", R"({"input_ids": [[4294967296]]})"}) {
    EXPECT_EQ(open(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(TokenDatasetTest, JoinsShards) {
  const TestFolder folder;
  ASSERT_TRUE(WriteShard(folder.Path("a.bin"), 10, {{0, 1}, {2}}).ok());
  ASSERT_TRUE(WriteShard(folder.Path("b.bin"), 20, {{3, 4, 5}}).ok());
  ASSERT_TRUE(WriteShard(folder.Path("empty.bin"), 20, {}).ok());
  const auto dataset =
      TokenDataset::Open({folder.Path("a.bin"), folder.Path("empty.bin"), folder.Path("b.bin")});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->vocab_size(), 20);
  EXPECT_EQ(dataset->num_documents(), 3);
  std::vector<int64_t> ids(5);
  ASSERT_TRUE(dataset->Read(1, std::span(ids)).ok());
  EXPECT_THAT(ids, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_EQ(dataset->DocumentOf(2), 1);
  EXPECT_EQ(dataset->DocumentOf(3), 2);
  EXPECT_EQ(dataset->document_start(2), 3);
  EXPECT_EQ(dataset->document_start(3), 6);
  EXPECT_FALSE(dataset->Read(2, std::span(ids)).ok());
}

}  // namespace
}  // namespace shoal
