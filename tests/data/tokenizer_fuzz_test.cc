// A tokenizer.json that is broken in any way is refused or works; it never crashes.
#include <random>

#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "tests/data/test_files.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

// A small file with one of everything, so that mutations hit something.
Json SmallTokenizer() {
  return Json::parse(
      R"({"version": "1.0", "added_tokens": [{"id": 0, "content": "<s>", "single_word": false,
    "lstrip": true, "rstrip": false, "normalized": true, "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\p{L}{1,3}+|(?i:'s)|[^\\s&&[^a]]\\b"},
      "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "unk_token": "<s>", "fuse_unk": true, "ignore_merges": true,
      "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġa": 5}, "merges": ["a b", ["Ġ", "a"]]}})");
}

void TryToUse(const std::string& json) {
  const auto tokenizer = Tokenizer::FromJson(json, json);
  if (!tokenizer.ok()) return;
  const auto ids = tokenizer->Encode("ab <s> é\xff's 12 ab");
  if (ids.ok()) tokenizer->Decode(*ids);
}

TEST(TokenizerFuzzTest, MutatedBytes) {
  const std::string good = SmallTokenizer().dump();
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string json = good;
    for (uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % json.size();
      switch (random() % 4) {
        case 0:
          json[at] = static_cast<char>(random());
          break;
        case 1:
          json.erase(at, 1 + random() % 8);
          break;
        case 2:
          json.insert(at, json.substr(random() % json.size(), random() % 16));
          break;
        default:
          json[at] = "{}[]\",:0-9\\"[random() % 11];
      }
      if (json.empty()) json = "{";
    }
    TryToUse(json);
  }
}

// Replaces or removes values, of any depth, by values of other types.
void Mutate(Json& value, std::mt19937& random) {
  static const Json values[] = {nullptr,        true,  -1,         4294967296,
                                1e300,          "",    "Sequence", Json::array(),
                                Json::object(), {"x"}, "(((",      "[[a"};
  if (value.is_structured() && !value.empty() && random() % 4 != 0) {
    auto it = value.begin();
    std::advance(it, random() % value.size());
    return Mutate(*it, random);
  }
  value = values[random() % std::size(values)];
}

TEST(TokenizerFuzzTest, MutatedValues) {
  std::mt19937 random(2);
  for (int round = 0; round < 2000; ++round) {
    Json json = SmallTokenizer();
    for (uint32_t edits = 1 + random() % 2; edits > 0; --edits) Mutate(json, random);
    TryToUse(json.dump());
  }
}

TEST(TokenizerFuzzTest, DeepNesting) {
  for (const char* open : {"[", "{\"type\":\"Sequence\",\"normalizers\":[", "{\"normalizer\":"}) {
    std::string json = "{\"normalizer\":";
    for (int depth = 0; depth < 20000; ++depth) json += open;
    TryToUse(json);
  }
  std::string nested = R"({"type": "NFC"})";
  for (int depth = 0; depth < 200; ++depth)
    nested = R"({"type": "Sequence", "normalizers": [)" + nested + "]}";
  Json json = SmallTokenizer();
  json["normalizer"] = Json::parse(nested);
  EXPECT_FALSE(Tokenizer::FromJson(json.dump()).ok());
}

}  // namespace
}  // namespace shoal
