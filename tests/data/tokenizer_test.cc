#include "data/tokenizer.h"

#include <cstring>
#include <random>

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tests/data/test_files.h"

namespace shoal {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Json& Fixture() {
  static const Json fixture = Json::parse(ReadText("tests/fixtures/tokenizer_parity.json"));
  return fixture;
}

// The fixture's bytes, written as Latin-1.
std::string FromLatin1(const std::string& utf8) {
  std::string bytes;
  for (size_t i = 0; i < utf8.size(); ++i) {
    const auto c = static_cast<unsigned char>(utf8[i]);
    bytes += static_cast<char>(c < 0x80 ? c : (c & 3) << 6 | (utf8[++i] & 0x3F));
  }
  return bytes;
}

uint32_t Fnv1a(absl::string_view bytes) {
  uint32_t hash = 0x811C9DC5u;
  for (unsigned char c : bytes) hash = (hash ^ c) * 0x01000193u;
  return hash;
}

std::string BytesOf(const std::vector<int32_t>& ids) {
  return std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
}

Json Patched(const Json& patch) {
  Json json = Fixture()["base"];
  for (const auto& [key, value] : patch.items()) {
    if (key == "model") {
      json["model"].update(value);
    } else {
      json[key] = value;
    }
  }
  return json;
}

Tokenizer Base(const Json& patch = Json::object(), const std::string& config = "") {
  auto tokenizer = Tokenizer::FromJson(Patched(patch).dump(), config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// Ids and text equal to Python's tokenizers', see tests/fixtures/make_tokenizer_fixtures.py.
TEST(TokenizerTest, EqualsPythonOnHostileTexts) {
  for (const auto& [name, config] : Fixture()["configs"].items()) {
    SCOPED_TRACE(name);
    const Tokenizer tokenizer = Base(config["patch"]);
    const auto hashes = config["ids"].get<std::string>();
    std::string decoded;
    for (size_t i = 0; i < Fixture()["texts"].size(); ++i) {
      const std::string text = FromLatin1(Fixture()["texts"][i]);
      const auto ids = tokenizer.Encode(text);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(absl::StrCat(absl::Hex(Fnv1a(BytesOf(*ids)), absl::kZeroPad8)),
                hashes.substr(8 * i, 8))
          << "text " << i << ": " << text;
      decoded += tokenizer.Decode(*ids);
    }
    EXPECT_EQ(Fnv1a(decoded), config["decoded"].get<uint32_t>());
  }
}

TEST(TokenizerTest, DecodeInvertsEncode) {
  const Tokenizer tokenizer = Base();
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int length = random() % 40; length > 0; --length) {
      const uint32_t kind = random() % 4;
      uint32_t c = kind == 0   ? 0x20 + random() % 0x5F
                   : kind == 1 ? random() % 0x800
                   : kind == 2 ? random() % 0xD800
                               : 0x10000 + random() % 0x100000;
      if (c < 0x80) {
        text += static_cast<char>(c);
      } else if (c < 0x800) {
        text += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
      } else if (c < 0x10000) {
        text += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
                 static_cast<char>(0x80 | (c & 63))};
      } else {
        text += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
                 static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
      }
    }
    const auto ids = tokenizer.Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    ASSERT_EQ(tokenizer.Decode(*ids, {.skip_special_tokens = false}), text);
    StreamDecoder stream(tokenizer, {.skip_special_tokens = false});
    std::string streamed;
    for (int32_t id : *ids) {
      const std::string piece = stream.Push(id);
      streamed += piece;
    }
    ASSERT_EQ(streamed + stream.Finish(), text);
  }
}

TEST(TokenizerTest, StreamHoldsBytesUntilTheyAreACharacter) {
  const Tokenizer tokenizer = Base();
  const auto byte = [&](const char* token) { return *tokenizer.TokenToId(token); };
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.Push(byte("â")), "");  // 0xE2 0x82 0xAC is the euro sign
  EXPECT_EQ(stream.Push(byte("Ĥ")), "");
  EXPECT_EQ(stream.Push(byte("¬")), "€");
  EXPECT_EQ(stream.Push(byte("Ĥ")), "\uFFFD");
  EXPECT_EQ(stream.Push(byte("â")), "");
  EXPECT_EQ(stream.Push(byte("x")), "\uFFFDx");
  EXPECT_EQ(stream.Push(byte("â")), "");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
}

TEST(TokenizerTest, SpecialTokensAreAddedAndSkippedOnRequest) {
  const Tokenizer tokenizer = Base(Fixture()["configs"]["llama3"]["patch"]);
  const auto with = tokenizer.Encode("a"),
             without = tokenizer.Encode("a", {.add_special_tokens = false});
  EXPECT_THAT(*with, ElementsAre(0, *tokenizer.TokenToId("a")));
  EXPECT_THAT(*without, ElementsAre(*tokenizer.TokenToId("a")));
  EXPECT_EQ(tokenizer.Decode(*with), "a");
  EXPECT_EQ(tokenizer.Decode(*with, {.skip_special_tokens = false}), "<|endoftext|>a");
  EXPECT_EQ(tokenizer.eos_id(), 0);
  EXPECT_EQ(tokenizer.vocab_size(), 700);
}

TEST(TokenizerTest, ConfigNamesTheRoles) {
  const Tokenizer tokenizer = Base(
      Json::object(), R"({"eos_token": {"content": "a"}, "pad_token": "b", "bos_token": null})");
  EXPECT_EQ(tokenizer.eos_id(), tokenizer.TokenToId("a"));
  EXPECT_EQ(tokenizer.pad_id(), tokenizer.TokenToId("b"));
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
}

TEST(TokenizerTest, SavesWhatItRead) {
  const TestFolder folder;
  PosixFileSystem files;
  const std::string json = Fixture()["base"].dump(1);
  auto tokenizer = Tokenizer::FromJson(json);
  ASSERT_TRUE(tokenizer.ok());
  ASSERT_TRUE(tokenizer->SaveFiles(files, folder.path(), 512).ok());
  EXPECT_EQ(ReadText(folder.Path("tokenizer.json")), json);
  const Json config = Json::parse(ReadText(folder.Path("tokenizer_config.json")));
  EXPECT_EQ(config["eos_token"], "<|endoftext|>");
  EXPECT_EQ(config["model_max_length"], 512);
  EXPECT_EQ(config["tokenizer_class"], "PreTrainedTokenizerFast");
  const auto again = Tokenizer::Load(folder.path());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->fingerprint(), tokenizer->fingerprint());
  EXPECT_EQ(Tokenizer::Load(folder.Path("missing")).status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerTest, RefusesOtherFamiliesByName) {
  const auto refusal = [](const Json& patch) {
    return std::string(Tokenizer::FromJson(Patched(patch).dump()).status().message());
  };
  EXPECT_THAT(refusal({{"model", {{"type", "WordPiece"}}}}), HasSubstr("model: type WordPiece"));
  EXPECT_THAT(refusal({{"model", {{"type", "Unigram"}}}}), HasSubstr("model: type Unigram"));
  EXPECT_THAT(refusal({{"normalizer", {{"type", "Lowercase"}}}}),
              HasSubstr("normalizer: type Lowercase"));
  EXPECT_THAT(refusal({{"pre_tokenizer", {{"type", "Metaspace"}}}}),
              HasSubstr("pre_tokenizer: type Metaspace"));
  EXPECT_THAT(refusal({{"pre_tokenizer", nullptr}}), HasSubstr("pre_tokenizer: there is none"));
  EXPECT_THAT(refusal({{"decoder", {{"type", "WordPiece"}}}}),
              HasSubstr("decoder: type WordPiece"));
  EXPECT_THAT(refusal({{"model", {{"dropout", 0.1}}}}), HasSubstr("model.dropout"));
  EXPECT_THAT(refusal({{"model", {{"merges", {"a zzzz"}}}}}), HasSubstr("model.merges entry 0"));
}

TEST(TokenizerTest, ByteWithoutTokenIsAnErrorNotALoss) {
  const auto tokenizer = Tokenizer::FromJson(
      R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*tokenizer->Encode("aa"), ElementsAre(0, 0));
  EXPECT_EQ(tokenizer->Encode("ab").status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerTest, PatternThatBacktracksWithoutEndGivesUp) {
  const Tokenizer tokenizer =
      Base({{"pre_tokenizer",
             {{"type", "Sequence"},
              {"pretokenizers",
               {{{"type", "Split"},
                 {"pattern", {{"Regex", "(?:a+)+(?:b|c)"}}},
                 {"behavior", "Isolated"},
                 {"invert", false}},
                {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}}});
  const auto ids = tokenizer.Encode(std::string(60, 'a'));
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kResourceExhausted) << ids.status();
}

}  // namespace
}  // namespace shoal
