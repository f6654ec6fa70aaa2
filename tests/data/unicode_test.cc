#include "data/unicode.h"

#include <gtest/gtest.h>

#include "data/byte_level.h"
#include "data/word_scanner.h"

namespace shoal {
namespace {

TEST(UnicodeTest, ReplacesMaximalSubpartsAsPythonDoes) {
  // Left: bytes; right: what Python's bytes.decode("utf-8", "replace") gives.
  const std::pair<std::string, std::string> cases[] = {
      {"\xff", "\uFFFD"},
      {"abc\xc3", "abc\uFFFD"},
      {"\xe2\x82", "\uFFFD"},
      {"\xf0\x9f\x98", "\uFFFD"},
      {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xc0\xaf", "\uFFFD\uFFFD"},
      {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xe6\x97 x", "\uFFFD x"},
      {"caf\xe9 latin", "caf\uFFFD latin"}};
  for (const auto& [bytes, want] : cases) EXPECT_EQ(ReplaceInvalidUtf8(bytes), want);
}

TEST(UnicodeTest, EveryCharacterRoundTrips) {
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, text);
    const DecodedCharacter decoded = DecodeUtf8(text, 0);
    ASSERT_TRUE(decoded.valid && decoded.code_point == c &&
                decoded.length == static_cast<int>(text.size()))
        << uint32_t{c};
  }
}

TEST(UnicodeTest, KnowsUnicode16) {
  EXPECT_EQ(PropertiesOf(0x1C89).category(), Category::kLu);
  EXPECT_TRUE(PropertiesOf(0x2EBF0).letter());
  EXPECT_TRUE(PropertiesOf(0x3000).space());
  EXPECT_FALSE(PropertiesOf(0x200B).space());
  EXPECT_TRUE(PropertiesOf(0xBD).number());
}

TEST(ByteLevelTest, EveryByteHasACharacterOfItsOwn) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(FromByteLevel(ToByteLevel(all)), all);
  EXPECT_EQ(ToByteLevel(" a\n"), "ĠaĊ");
  EXPECT_EQ(FromByteLevel(" "), std::nullopt);
}

}  // namespace
}  // namespace shoal
