#include "inference/text_stream.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/status.h"

namespace shoal {
namespace {

// Byte-level, one token a letter: "a".."z" are 0..25, "<end>" is special.
Tokenizer Letters() {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  for (char letter = 'a'; letter <= 'z'; ++letter) vocab[std::string(1, letter)] = letter - 'a';
  const nlohmann::ordered_json json = {{"version", "1.0"},
                                       {"truncation", nullptr},
                                       {"padding", nullptr},
                                       {"added_tokens",
                                        {{{"id", 26},
                                          {"content", "<end>"},
                                          {"single_word", false},
                                          {"lstrip", false},
                                          {"rstrip", false},
                                          {"normalized", false},
                                          {"special", true}}}},
                                       {"normalizer", nullptr},
                                       {"pre_tokenizer",
                                        {{"type", "ByteLevel"},
                                         {"add_prefix_space", false},
                                         {"trim_offsets", true},
                                         {"use_regex", true}}},
                                       {"post_processor", nullptr},
                                       {"decoder",
                                        {{"type", "ByteLevel"},
                                         {"add_prefix_space", true},
                                         {"trim_offsets", true},
                                         {"use_regex", true}}},
                                       {"model",
                                        {{"type", "BPE"},
                                         {"dropout", nullptr},
                                         {"unk_token", nullptr},
                                         {"continuing_subword_prefix", nullptr},
                                         {"end_of_word_suffix", nullptr},
                                         {"fuse_unk", false},
                                         {"byte_fallback", false},
                                         {"vocab", vocab},
                                         {"merges", nlohmann::ordered_json::array()}}}};
  auto tokenizer = Tokenizer::FromJson(json.dump());
  SHOAL_CHECK(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

struct Outcome {
  std::string text;
  std::vector<std::string> pieces;
  size_t taken = 0;  // Letters pushed until Push said no
};

Outcome Push(const std::string& letters, const std::vector<std::string>& stop_strings) {
  const Tokenizer tokenizer = Letters();
  Outcome outcome;
  TextStream stream(tokenizer, stop_strings,
                    [&](absl::string_view piece) { outcome.pieces.emplace_back(piece); });
  while (outcome.taken < letters.size() && stream.Push(letters[outcome.taken++] - 'a')) {
  }
  stream.Finish();
  outcome.text = stream.text();
  return outcome;
}

TEST(TextStream, HandsOutEachTokenAtOnce) {
  const Outcome outcome = Push("hello", {});
  EXPECT_EQ(outcome.text, "hello");
  EXPECT_EQ(outcome.pieces, (std::vector<std::string>{"h", "e", "l", "l", "o"}));
}

TEST(TextStream, EndsBeforeTheStopString) {
  const Outcome outcome = Push("onestoptwo", {"stop"});
  EXPECT_EQ(outcome.text, "one");
  EXPECT_EQ(outcome.taken, 7u);
}

TEST(TextStream, HoldsBackWhatMayBecomeAStopString) {
  const Outcome outcome = Push("xststart", {"stop", "staz"});
  EXPECT_EQ(outcome.text, "xststart");
  EXPECT_EQ(outcome.pieces, (std::vector<std::string>{"x", "st", "star", "t"}));
}

TEST(TextStream, FindsAStopStringThatOverlapsItsOwnBeginning) {
  EXPECT_EQ(Push("aaab", {"aab"}).text, "a");
  EXPECT_EQ(Push("ababac", {"abac"}).text, "ab");
}

TEST(TextStream, TakesTheStopStringThatBeginsFirst) {
  EXPECT_EQ(Push("abcd", {"d", "bcd"}).text, "a");
}

TEST(TextStream, HandsOutABeginningOfAStopStringAtTheEnd) {
  EXPECT_EQ(Push("onesto", {"stop"}).text, "onesto");
}

TEST(TextStream, LeavesSpecialTokensOut) {
  const Tokenizer tokenizer = Letters();
  TextStream stream(tokenizer, {""}, nullptr);
  EXPECT_TRUE(stream.Push(7));
  EXPECT_TRUE(stream.Push(26));
  stream.Finish();
  EXPECT_EQ(stream.text(), "h");
}

}  // namespace
}  // namespace shoal
