#include "data/prepare_data.h"

#include <gmock/gmock.h>

#include "data/token_dataset.h"
#include "data/tokenizer.h"
#include "tests/data/test_files.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

class PrepareDataTest : public ::testing::Test {
 protected:
  PrepareDataTest() {
    options_.output_dir = folder_.Path("run");
    options_.tokenizer.mutable_train()->set_vocab_size(350);
    AddTrain(folder_.Write("text/a.txt", ReadText("tests/fixtures/english.txt")));
    AddTrain(
        folder_.Write("b.jsonl", "{\"text\": \"one document\"}\n{\"text\": \"and another\"}\n"));
  }
  void AddTrain(const std::string& path) { options_.data.add_train()->set_path(path); }

  TestFolder folder_;
  PrepareOptions options_;
};

TEST_F(PrepareDataTest, TokensDecodeToTheDocuments) {
  const auto prepared = PrepareData(options_);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_FALSE(prepared->reused);
  EXPECT_EQ(prepared->train_documents, 3);
  EXPECT_EQ(prepared->vocab_size, 350);
  const auto tokenizer = Tokenizer::Load(prepared->tokenizer);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto dataset = TokenDataset::Open(prepared->train, TokenShard::Check::kVerify);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  std::vector<int64_t> ids(dataset->num_tokens());
  ASSERT_TRUE(dataset->Read(0, std::span(ids)).ok());
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>(ids.begin(), ids.end()),
                              {.skip_special_tokens = false}),
            ReadText("tests/fixtures/english.txt") +
                "<|endoftext|>one document<|endoftext|>and another<|endoftext|>");
}

TEST_F(PrepareDataTest, IsDoneOnceUntilAnInputChanges) {
  const auto first = PrepareData(options_);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(PrepareData(options_)->reused);
  const auto loaded = LoadPreparedData(options_.output_dir);
  EXPECT_EQ(loaded->train, first->train);
  EXPECT_EQ(loaded->train_tokens, first->train_tokens);
  folder_.Write("b.jsonl", "{\"text\": \"changed\"}\n");
  EXPECT_FALSE(PrepareData(options_)->reused);
  EXPECT_TRUE(PrepareData(options_)->reused);
  options_.tokenizer.mutable_train()->set_vocab_size(300);
  EXPECT_FALSE(PrepareData(options_)->reused);
  std::filesystem::resize_file(PrepareData(options_)->train[0], 100);  // Someone cut the shard off
  EXPECT_FALSE(PrepareData(options_)->reused);
}

TEST_F(PrepareDataTest, ThreadsDoNotChangeTheResult) {
  std::string lines;
  for (int i = 0; i < 60000; ++i)
    lines += "{\"text\": \"line " + std::to_string(i * 7919) +
             " of a text that takes several batches of two megabytes\"}\n";
  folder_.Write("b.jsonl", lines);
  const auto one = PrepareData(options_);
  const std::string shard = ReadText(one->train[0]);
  options_.output_dir = folder_.Path("other");
  options_.num_threads = 3;
  EXPECT_TRUE(ReadText(PrepareData(options_)->train[0]) == shard);
}

TEST_F(PrepareDataTest, ShardsOfIdsNeedNoTokenizer) {
  PrepareOptions options;
  options.output_dir = folder_.Path("ids");
  options.data.add_train()->set_path(folder_.Write("ids.json", R"({"input_ids": [[1, 2, 3]]})"));
  const auto prepared = PrepareData(options);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(prepared->tokenizer, "");
  EXPECT_EQ(prepared->vocab_size, 4);
  options.data.add_train()->set_path(folder_.Write("c.txt", "text"));
  EXPECT_THAT(std::string(PrepareData(options).status().message()),
              HasSubstr("there is no tokenizer"));
}

TEST_F(PrepareDataTest, RefusesShardsOfAnotherTokenizer) {
  PosixFileSystem files;
  auto writer = TokenDatasetWriter::Create(files, folder_.Path("other.bin"),
                                           {.vocab_size = 300, .tokenizer_fingerprint = 1});
  ASSERT_TRUE((*writer)->Append(std::vector<int32_t>{1, 2}).ok() && (*writer)->Finish().ok());
  AddTrain(folder_.Path("other.bin"));
  EXPECT_THAT(std::string(PrepareData(options_).status().message()),
              HasSubstr("made by another tokenizer"));
}

TEST_F(PrepareDataTest, NothingPreparedIsNotFound) {
  EXPECT_EQ(LoadPreparedData(folder_.Path("never")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace shoal
