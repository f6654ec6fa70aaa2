#include "data/bpe_trainer.h"

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "tests/data/test_files.h"

namespace shoal {
namespace {

using Json = nlohmann::json;

// Vocabulary and merges equal to Python's BpeTrainer, see
// tests/fixtures/make_bpe_trainer_fixtures.py.
TEST(BpeTrainerTest, EqualsPython) {
  const Json fixture = Json::parse(ReadText("tests/fixtures/bpe_training.json"));
  for (const Json& expected : fixture["cases"]) {
    SCOPED_TRACE(expected["vocab_size"].dump());
    BpeTrainer trainer({.vocab_size = expected["vocab_size"],
                        .min_frequency = expected["min_frequency"],
                        .special_tokens = expected["special_tokens"]});
    for (const Json& text : fixture["texts"]) trainer.AddText(text.get<std::string>());
    const auto tokenizer = trainer.Train();
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const TestFolder folder;
    PosixFileSystem files;
    ASSERT_TRUE(tokenizer->SaveFiles(files, folder.path()).ok());
    const Json model = Json::parse(ReadText(folder.Path("tokenizer.json")))["model"];
    std::vector<std::string> tokens(model["vocab"].size()), merges;
    for (const auto& [token, id] : model["vocab"].items()) tokens.at(id.get<size_t>()) = token;
    for (const Json& merge : model["merges"])
      merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    EXPECT_EQ(tokens, expected["tokens"].get<std::vector<std::string>>());
    EXPECT_EQ(merges, expected["merges"].get<std::vector<std::string>>());
  }
}

TEST(BpeTrainerTest, FirstSpecialTokenEndsDocuments) {
  BpeTrainer trainer({.vocab_size = 300, .special_tokens = {"<end>", "<pad>"}});
  trainer.AddText("aaaa aaaa");
  const auto tokenizer = trainer.Train();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->eos_id(), 0);
  EXPECT_EQ(tokenizer->TokenToId("<pad>"), 1);
  EXPECT_LT(tokenizer->vocab_size(), 300);  // The text gives no more
}

TEST(BpeTrainerTest, RefusesWhatCannotBe) {
  EXPECT_FALSE(BpeTrainer({.vocab_size = 256, .special_tokens = {"<end>"}}).Train().ok());
  EXPECT_FALSE(BpeTrainer({.special_tokens = {"x", "x"}}).Train().ok());
  EXPECT_FALSE(BpeTrainer({.special_tokens = {""}}).Train().ok());
}

}  // namespace
}  // namespace shoal
